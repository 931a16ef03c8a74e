//! Conversations with a server that the tests play, message by message.

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error;
    use std::time::Instant;

    use bytes::BytesMut;
    use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

    use super::super::clock;
    use super::super::error::DatabaseError;
    use super::super::postgres_conversation::*;
    use super::super::postgres_params::Params;

    /// A statement of a test: what it is, and whether it only reads.
    #[derive(Debug)]
    struct Job(Cow<'static, str>, Params, bool);

    impl Asks for Job {
        fn text(&self) -> &Cow<'static, str> {
            &self.0
        }

        fn params(&self) -> &Params {
            &self.1
        }

        fn only_reads(&self) -> bool {
            self.2
        }

        fn is_wanted(&self) -> bool {
            true
        }
    }

    const ROW: &str = "SELECT $1::int4";

    fn read(value: i32) -> Job {
        Job(ROW.into(), Params::default().and(value), true)
    }

    fn write(value: i32) -> Job {
        Job(ROW.into(), Params::default().and(value), false)
    }

    /// A conversation with a server that the test plays.
    struct Rig {
        conversation: Conversation<Job>,
        now: Instant,
        done: Vec<Done<Job>>,
    }

    impl Rig {
        fn new() -> Rig {
            let now = clock::now();
            Rig { conversation: Conversation::default(), now, done: Vec::new() }
        }

        /// One that has prepared the statement, and found it quick.
        fn with_row() -> Rig {
            let mut rig = Rig::new();
            rig.ask([read(0)]);
            assert_eq!(rig.sent(), "PDS");
            rig.hear_all([(b'1', &b""[..]), (b't', b"\0\x01\0\0\0\x17"), INT_COLUMN, READY]);
            assert_eq!(rig.sent(), "BES", "it is asked for once it is prepared");
            rig.answer(0);
            rig.hear_all([READY]);
            assert_eq!(rig.outcomes(), [(0, Ok(0))]);
            rig
        }

        fn ask(&mut self, jobs: impl IntoIterator<Item = Job>) {
            for job in jobs {
                self.conversation.ask(job, self.now, &mut self.done);
            }
            self.conversation.end_unit();
        }

        fn hear(&mut self, kind: u8, body: &[u8]) -> Result<(), Broken> {
            self.conversation.hear(kind, body, self.now, &mut self.done)
        }

        fn hear_all<const N: usize>(&mut self, messages: [(u8, &[u8]); N]) {
            for (kind, body) in messages {
                self.hear(kind, body).expect("it is in order");
            }
        }

        /// The answer to one statement.
        fn answer(&mut self, value: i32) {
            let row = [b"\0\x01\0\0\0\x04", &value.to_be_bytes()[..]].concat();
            self.hear_all([(b'2', &b""[..]), (b'D', &row), (b'C', b"SELECT 1\0")]);
        }

        fn refuse(&mut self, state: &str) {
            let body = format!("VERROR\0C{state}\0Mno\0\0");
            self.hear_all([(b'E', body.as_bytes())]);
        }

        /// The kinds of the messages that were sent since.
        fn sent(&mut self) -> String {
            let mut out = self.conversation.output().split();
            let mut kinds = String::new();
            while let Some((kind, rest)) = out.split_first() {
                kinds.push(char::from(*kind));
                let length = u32::from_be_bytes(*rest.first_chunk().expect("a length"));
                let _message = out.split_to(1 + usize::try_from(length).expect("small"));
            }
            kinds
        }

        /// What is done since: the parameter, and what was found or the SQLSTATE.
        fn outcomes(&mut self) -> Vec<(i32, Result<i32, String>)> {
            let outcome = |done: Done<Job>| {
                let mut out = BytesMut::new();
                let value = done.job.1.iter().next().expect("a parameter");
                value.to_sql_checked(&Type::INT4, &mut out).expect("a number");
                let asked = i32::from_be_bytes(*out.first_chunk().expect("four bytes"));
                let found = done.rows.map(|rows| rows[0].get(0)).map_err(|error| match error {
                    DatabaseError::Rejected(rejection) => rejection.code,
                    other => other.to_string(),
                });
                (asked, found)
            };
            self.done.drain(..).map(outcome).collect()
        }
    }

    const READY: (u8, &[u8]) = (b'Z', b"I");
    /// One column, `n`, of the type `int4`.
    const INT_COLUMN: (u8, &[u8]) =
        (b'T', b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0");

    #[test]
    fn who_comes_while_a_statement_is_prepared_waits_for_that() {
        let mut rig = Rig::new();
        rig.ask([read(1), write(2)]);
        assert_eq!(rig.sent(), "PDS");
        rig.hear_all([(b'1', &b""[..]), (b't', b"\0\x01\0\0\0\x17"), INT_COLUMN, READY]);
        assert_eq!(rig.sent(), "BESBES");
        rig.answer(1);
        rig.hear_all([READY]);
        rig.answer(2);
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(1, Ok(1)), (2, Ok(2))]);
    }

    #[test]
    fn a_statement_that_cannot_be_prepared_fails_those_who_wait_and_is_tried_again() {
        let mut rig = Rig::new();
        rig.ask([read(1), read(2)]);
        rig.refuse("42601");
        rig.hear_all([READY]);
        let refused = || Err("42601".to_owned());
        assert_eq!(rig.outcomes(), [(1, refused()), (2, refused())]);
        assert_eq!(rig.sent(), "PDSCS", "its name is given back");
        rig.ask([read(3)]);
        assert_eq!(rig.sent(), "PDS");
    }

    #[test]
    fn those_that_only_read_share_a_unit_and_are_done_with_it() {
        let mut rig = Rig::with_row();
        rig.ask([read(1), read(2), write(3), read(4)]);
        assert_eq!(rig.sent(), "BEBESBESBES", "one that may write is by itself");
        rig.answer(1);
        rig.answer(2);
        assert_eq!(rig.outcomes(), [], "nothing is done before its unit is");
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(1, Ok(1)), (2, Ok(2))]);
        rig.answer(3);
        rig.hear_all([READY]);
        rig.answer(4);
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(3, Ok(3)), (4, Ok(4))]);
    }

    #[test]
    fn a_unit_has_an_end() {
        let mut rig = Rig::with_row();
        let count = i32::try_from(UNIT_MAX).unwrap();
        rig.ask((0..=count).map(read));
        assert_eq!(rig.sent(), format!("{}SBES", "BE".repeat(UNIT_MAX)));
    }

    #[test]
    fn when_one_of_a_unit_fails_the_others_are_asked_again_each_by_itself() {
        let mut rig = Rig::with_row();
        rig.ask([read(1), read(2), read(3)]);
        rig.ask([write(4)]);
        assert_eq!(rig.sent(), "BEBEBESBES");
        rig.answer(1);
        rig.refuse("22012");
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(2, Err("22012".to_owned()))]);
        assert_eq!(rig.sent(), "BESBES");
        assert!(rig.conversation.in_front().is_some_and(|job| !job.only_reads()));
        for value in [4, 1, 3] {
            rig.answer(value);
            rig.hear_all([READY]);
        }
        assert_eq!(rig.outcomes(), [(4, Ok(4)), (1, Ok(1)), (3, Ok(3))]);
    }

    #[test]
    fn when_a_transaction_cannot_be_ended_all_of_its_unit_are_asked_again() {
        let mut rig = Rig::with_row();
        rig.ask([read(1), read(2)]);
        assert_eq!(rig.sent(), "BEBES");
        rig.answer(1);
        rig.answer(2);
        rig.refuse("40001");
        rig.hear_all([READY]);
        assert_eq!((rig.outcomes(), &*rig.sent()), (vec![], "BESBES"));
        rig.answer(1);
        rig.refuse("40001");
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(1, Err("40001".to_owned()))], "its own");
    }

    #[test]
    fn what_is_asked_again_is_prepared_again_when_it_was_closed() {
        let mut rig = Rig::with_row();
        rig.ask([read(1), read(2), read(3)]);
        rig.refuse("0A000");
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(1, Err("0A000".to_owned()))]);
        assert_eq!(rig.sent(), "BEBEBESCSPDS");
        rig.hear_all([(b'3', &b""[..]), READY, (b'1', b"")]);
        rig.hear_all([(b't', &b"\0\x01\0\0\0\x17"[..]), INT_COLUMN, READY]);
        for value in [2, 3] {
            rig.answer(value);
            rig.hear_all([READY]);
        }
        assert_eq!(rig.outcomes(), [(2, Ok(2)), (3, Ok(3))]);
    }

    #[test]
    fn nothing_is_asked_again_on_a_session_that_is_about_to_end() {
        let mut rig = Rig::with_row();
        rig.ask([read(1), read(2)]);
        rig.conversation.begin_end();
        rig.refuse("57014");
        rig.hear_all([READY]);
        let timeout = DatabaseError::Timeout.to_string();
        let cancelled = DatabaseError::Cancelled.to_string();
        assert_eq!(rig.outcomes(), [(1, Err(timeout)), (2, Err(cancelled))]);
        assert_eq!(rig.sent(), "BEBES");
    }

    #[test]
    fn what_may_commit_by_itself_is_by_itself() {
        let mut rig = Rig::new();
        let call = |value: i32| Job("CALL p($1)".into(), Params::default().and(value), true);
        rig.ask([call(1)]);
        rig.hear_all([(b't', &b"\0\x01\0\0\0\x17"[..]), INT_COLUMN, READY]);
        rig.answer(1);
        rig.hear_all([READY]);
        rig.sent();
        rig.ask([call(2), call(3)]);
        assert_eq!(rig.sent(), "BESBES");
    }

    #[test]
    fn a_slow_statement_is_by_itself_until_it_is_quick_again() {
        let mut rig = Rig::with_row();
        rig.ask([read(1), read(2)]);
        assert_eq!(rig.sent(), "BEBES");
        rig.now += QUICK_MAX * 3;
        rig.answer(1);
        rig.answer(2);
        rig.hear_all([READY]);
        rig.ask([read(3), read(4)]);
        assert_eq!(rig.sent(), "BESBES");
        for value in [3, 4] {
            rig.answer(value);
            rig.hear_all([READY]);
        }
        rig.ask([read(5), read(6)]);
        assert_eq!(rig.sent(), "BEBES");
    }

    #[test]
    fn what_cannot_be_executed_any_more_is_prepared_anew() {
        let mut rig = Rig::with_row();
        rig.ask([write(1)]);
        rig.refuse("0A000");
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(1, Err("0A000".to_owned()))]);
        assert_eq!(rig.sent(), "BESCS");
        rig.ask([write(2)]);
        assert_eq!(rig.sent(), "PDS");
    }

    #[test]
    fn a_parameter_that_does_not_fit_or_panics_leaves_nothing_behind() {
        #[derive(Debug)]
        struct Panics;

        impl ToSql for Panics {
            fn to_sql(
                &self,
                _: &Type,
                out: &mut BytesMut,
            ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
                out.extend_from_slice(b"half");
                panic!("as the test wants it")
            }

            fn accepts(_: &Type) -> bool {
                true
            }

            to_sql_checked!();
        }

        let mut rig = Rig::with_row();
        let faulty = [
            (Params::default().and("text"), "parameter $1"),
            (Params::default(), "the statement has 1 parameters and was given 0"),
            (Params::default().and(Panics), "the job panicked"),
        ];
        for (params, expected) in faulty {
            rig.ask([Job(ROW.into(), params, true)]);
            let error = rig.done.pop().expect("it is done").rows.expect_err(expected);
            assert!(error.to_string().starts_with(expected), "{error}");
            assert_eq!(rig.sent(), "");
        }
        rig.ask([read(1)]);
        rig.answer(1);
        rig.hear_all([READY]);
        assert_eq!(rig.outcomes(), [(1, Ok(1))]);
    }

    #[test]
    fn a_session_that_is_ended_says_so_of_the_one_in_front() {
        let mut rig = Rig::with_row();
        rig.ask([write(1), write(2)]);
        let ended = rig.hear(b'E', b"VFATAL\0C53200\0Mout of memory\0\0");
        assert_eq!(ended, Err(Broken("the server has ended the session")));
        assert_eq!(rig.outcomes(), [(1, Err("53200".to_owned()))]);
    }

    #[test]
    fn what_was_not_asked_for_breaks_it() {
        let int = b"\0\x01\0\0\0\x04\0\0\0\x07";
        for (kind, body) in [
            (b'Z', &b"I"[..]),
            (b'D', int),
            (b'T', INT_COLUMN.1),
            (b'E', b"no fields"),
            (b'G', b"\0\0\0"),
            (b'?', b""),
        ] {
            let mut rig = Rig::with_row();
            rig.hear(kind, body).expect_err("nothing was asked");
            rig.ask([read(1)]);
            rig.hear(b'D', &int[..9]).expect_err("it is torn");
        }
        let mut rig = Rig::with_row();
        rig.ask([write(1)]);
        rig.hear(b'Z', b"I").expect_err("it was not done");
        let mut rig = Rig::with_row();
        rig.ask([write(1)]);
        rig.answer(1);
        rig.hear(b'Z', b"T").expect_err("a transaction is left");
        rig.hear_all([(b'N', &b"C00000\0Mhello\0\0"[..]), (b'S', b"a\0b\0"), (b'A', b"")]);
    }

    #[test]
    fn many_texts_do_not_stay() {
        let mut rig = Rig::new();
        let mut closed = 0;
        for at in 0..1000 {
            rig.ask([Job(
                format!("SELECT $1::int4 + {at}").into(),
                Params::default().and(1),
                false,
            )]);
            let sent = rig.sent();
            closed += sent.matches('C').count();
            if sent.contains('C') {
                rig.hear_all([READY]);
            }
            rig.hear_all([(b't', &b"\0\x01\0\0\0\x17"[..]), INT_COLUMN, READY]);
            rig.answer(at);
            rig.hear_all([READY]);
            assert_eq!(rig.outcomes(), [(1, Ok(at))]);
        }
        assert_eq!(closed, 768, "three times 256");
    }

    #[test]
    fn a_type_of_the_databases_own_is_looked_up_first() {
        let mut rig = Rig::new();
        rig.ask([Job("SELECT $1::mood".into(), Params::default().and(1), false)]);
        rig.hear_all([(b't', &b"\0\x01\0\x01\0\0"[..]), (b'n', b""), READY]);
        assert_eq!(rig.sent(), "PDSPBES");
        // It is gone before the catalogue is asked.
        rig.hear_all([(b'C', &b"SELECT 0\0"[..]), READY]);
        let error = rig.done.pop().expect("it is done").rows.expect_err("no such type");
        assert_eq!(error.to_string(), "there is no type 65536 any more");
    }
}
