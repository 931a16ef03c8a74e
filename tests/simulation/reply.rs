//! A strict reader of responses. What it calls complete, no client could take for truncated; what
//! is truncated it never calls complete.

/// A final response (1xx are only counted).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Whether it announced the close.
    pub closes: bool,
    pub body: Vec<u8>,
    /// Interim responses before it.
    pub interim: usize,
}

/// How far a stream of responses has been read.
#[derive(Default)]
pub struct Reader {
    state: State,
    line: Vec<u8>,
    head: Vec<String>,
    reply: Option<Reply>,
    interim: usize,
    /// Bytes read, whatever they were.
    pub taken: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    Sized(usize),
    ChunkSize,
    Chunk(usize),
    ChunkEnd,
    Trailer,
}

impl Reader {
    /// Takes bytes in. The complete replies among them go to `replies`.
    ///
    /// # Errors
    /// What is wrong with the stream.
    pub fn take(&mut self, mut bytes: &[u8], replies: &mut Vec<Reply>) -> Result<(), String> {
        self.taken += bytes.len();
        while !bytes.is_empty() {
            if let State::Sized(left) | State::Chunk(left) = self.state {
                let (now, rest) = bytes.split_at(left.min(bytes.len()));
                bytes = rest;
                self.body().extend_from_slice(now);
                let left = left - now.len();
                match self.state {
                    State::Sized(_) if left == 0 => self.complete(replies),
                    State::Sized(_) => self.state = State::Sized(left),
                    _ if left == 0 => self.state = State::ChunkEnd,
                    _ => self.state = State::Chunk(left),
                }
                continue;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
            let (now, rest) = bytes.split_at(end);
            bytes = rest;
            self.line.extend_from_slice(now);
            if self.line.last() == Some(&b'\n') {
                let line = String::from_utf8(std::mem::take(&mut self.line))
                    .map_err(|_| "a line that is no text".to_owned())?;
                let line = line.strip_suffix("\r\n").ok_or("a line that ends without CR")?;
                self.line(line, replies)?;
            }
        }
        Ok(())
    }

    /// Whether nothing of a next response has come.
    pub fn is_between(&self) -> bool {
        self.state == State::Head && self.head.is_empty() && self.line.is_empty()
    }

    /// The response under way, when its head is complete.
    pub fn current(&self) -> Option<&Reply> {
        self.reply.as_ref()
    }

    /// Interim responses since the last final one.
    pub fn interim(&self) -> usize {
        self.interim
    }

    fn body(&mut self) -> &mut Vec<u8> {
        &mut self.reply.as_mut().expect("a body has a head").body
    }

    fn complete(&mut self, replies: &mut Vec<Reply>) {
        replies.extend(self.reply.take());
        self.interim = 0;
        self.state = State::Head;
    }

    fn line(&mut self, line: &str, replies: &mut Vec<Reply>) -> Result<(), String> {
        match self.state {
            State::Head if line.is_empty() => return self.end_of_head(replies),
            State::Head => self.head.push(line.to_owned()),
            State::ChunkSize => {
                let size = usize::from_str_radix(line, 16)
                    .map_err(|_| format!("`{line}` is no chunk size"))?;
                self.state = if size == 0 { State::Trailer } else { State::Chunk(size) };
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(format!("`{line}` behind a chunk")),
            State::Trailer if line.is_empty() => self.complete(replies),
            State::Trailer => return Err(format!("a trailer: `{line}`")),
            State::Sized(_) | State::Chunk(_) => unreachable!("bodies are not read by line"),
        }
        Ok(())
    }

    fn end_of_head(&mut self, replies: &mut Vec<Reply>) -> Result<(), String> {
        let head = std::mem::take(&mut self.head);
        let (first, fields) = head.split_first().ok_or("a response without a status line")?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|code| code.parse().ok());
        let status: u16 = status.ok_or_else(|| format!("`{first}` is no status line"))?;
        let (mut length, mut chunked, mut closes) = (None, false, false);
        for field in fields {
            let (name, value) = field.split_once(": ").ok_or_else(|| format!("field `{field}`"))?;
            match name {
                "content-length" if length.is_none() => {
                    let size: usize = value.parse().map_err(|_| format!("length `{value}`"))?;
                    length = Some(size);
                }
                "transfer-encoding" if value == "chunked" && !chunked => chunked = true,
                "content-length" | "transfer-encoding" => return Err(format!("field `{field}`")),
                "connection" => closes |= value == "close",
                _ => {}
            }
        }
        if status < 200 {
            self.interim += 1;
            return Ok(());
        }
        let interim = self.interim;
        self.reply = Some(Reply { status, closes, body: Vec::new(), interim });
        match (length, chunked) {
            (Some(0), false) => self.complete(replies),
            (Some(length), false) => self.state = State::Sized(length),
            (None, true) => self.state = State::ChunkSize,
            // It would end with the connection: a truncated one would look complete.
            (None, false) => return Err("a response without a length".to_owned()),
            (Some(_), true) => return Err("a response with two lengths".to_owned()),
        }
        Ok(())
    }
}
