//! Who wants to know of failures is told of each, once.

use std::sync::mpsc::{Receiver, channel};

use ebbtide::{
    Body, IntoResponse, Limits, OnFailure, Options, Request, Response, Router, StatusCode, get,
};

use super::support::{PATIENCE, Served, ms, options};

/// What was told: status, `method path`, route, id, cause.
type Told = (u16, String, Option<String>, String, String);

fn served(limits: Limits) -> (Served, Receiver<Told>) {
    let (sender, told) = channel();
    let on_failure = OnFailure::new(move |failure| {
        let target = format!("{} {}", failure.method, failure.path);
        let (route, cause) = (failure.route.map(str::to_owned), format!("{:?}", failure.cause));
        let told = (failure.status, target, route, failure.request_id.to_owned(), cause);
        sender.send(told).expect("the test listens");
    });
    let code = |request: Request| -> StatusCode {
        request.param("code").and_then(|code| code.parse().ok()).expect("a status")
    };
    let never = async |_: Request| std::future::pending::<Response>().await;
    let broken = |_: Request| {
        Body::unfold((), async |()| -> Option<(ebbtide::Bytes, ())> { panic!("in the body") })
            .into_response()
    };
    let router = Router::new()
        .route("/fine", get(|_: Request| "fine"))
        .route("/bad/{code}", get(code))
        .route("/panic", get(|_: Request| -> Response { panic!("at once") }))
        .route("/later", get(async |_: Request| -> Response { panic!("later") }))
        .route("/body", get(broken))
        .route("/never", get(never));
    let options = Options { limits, on_failure: Some(on_failure), ..options() };
    (Served::with(options, router), told)
}

#[test]
fn each_response_of_500_and_above_is_told_with_its_route_and_id() {
    let (server, told) = served(Limits::default());
    let mut client = server.client();
    assert_eq!(client.get("/bad/404").status, 404);
    assert_eq!(client.get("/fine").status, 200);
    let response = client.get("/bad/502");
    assert_eq!(response.status, 502);
    let (status, target, route, id, cause) = told.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!((status, target.as_str()), (502, "GET /bad/502"));
    assert_eq!((route.as_deref(), cause.as_str()), (Some("/bad/{code}"), "Status"));
    assert_eq!(response.header("x-request-id"), Some(id.as_str()));
    drop(server);
    assert!(told.try_recv().is_err(), "nothing else is told");
}

#[test]
fn each_panic_is_told_once_with_what_it_said() {
    let (server, told) = served(Limits::default());
    for (path, said) in [("/panic", "at once"), ("/later", "later")] {
        let response = server.client().get(path);
        assert_eq!(response.status, 500);
        let (status, target, route, id, cause) = told.recv_timeout(PATIENCE).expect("it is told");
        assert_eq!((status, target), (500, format!("GET {path}")));
        assert_eq!(route.as_deref(), Some(path));
        assert_eq!(cause, format!("Panic({said:?})"));
        assert_eq!(response.header("x-request-id"), Some(id.as_str()));
    }
    let mut client = server.client();
    client.send(super::client::request("/body"));
    let (status, _, route, _, cause) = told.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!((status, route.as_deref()), (500, Some("/body")));
    assert!(cause.starts_with("Body(") && cause.contains("in the body"), "{cause}");
    drop(server);
    assert!(told.try_recv().is_err(), "nothing else is told");
}

#[test]
fn what_the_server_answers_in_a_handlers_place_is_told_too() {
    let (server, told) = served(Limits { request_timeout: ms(200), ..Limits::default() });
    assert_eq!(server.client().get("/never").status, 503);
    let (status, _, route, _, _) = told.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!((status, route.as_deref()), (503, Some("/never")));
}

#[test]
fn a_panic_of_who_is_told_is_the_requests_no_more_than_its_own() {
    let on_failure = OnFailure::new(|_| panic!("cannot listen"));
    let router = Router::new()
        .route("/bad", get(|_: Request| StatusCode::INTERNAL_SERVER_ERROR))
        .route("/fine", get(|_: Request| "fine"));
    let server = Served::with(Options { on_failure: Some(on_failure), ..options() }, router);
    let mut client = server.client();
    assert_eq!(client.get("/bad").status, 500);
    assert_eq!(client.get("/fine").status, 200);
}
