//! From method and path to a handler.
//!
//! Paths are matched by `matchit`: `/items/{id}` takes one segment, `/files/{*rest}` the rest.
//! A path that is known under other methods only is answered 405 with `Allow` (RFC 9110, 15.5.6),
//! HEAD is answered by the GET handler (its body is not sent), OPTIONS by the list of methods.

use std::any::Any;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use http::header::ALLOW;
use http::{HeaderValue, Method, StatusCode};

use super::handler::{AnyHandler, Handler, erase};
use crate::http::message::{IntoResponse, PARAMS_MAX, Params, Request, Route};
use crate::http::service::{Answer, App};

/// Routes and the state that their handlers share. A clone is given to each worker.
#[derive(Clone, Default)]
pub struct Router {
    matcher: matchit::Router<usize>,
    routes: Vec<Entry>,
    state: Option<Arc<dyn Any + Send + Sync>>,
}

#[derive(Clone)]
struct Entry {
    template: String,
    names: Vec<String>,
    methods: Methods,
}

impl Router {
    /// A router without routes: every request is answered 404.
    pub fn new() -> Router {
        Router::default()
    }

    /// Adds a route.
    ///
    /// ```
    /// use ebbtide::{Request, Router, get};
    ///
    /// let router = Router::new()
    ///     .route("/", get(|_: Request| "tide tables"))
    ///     .route("/tides/{port}", get(async |request: Request| {
    ///         format!("high water at {}", request.param("port").unwrap_or("?"))
    ///     }));
    /// # let _ = router;
    /// ```
    ///
    /// # Panics
    /// When the template is malformed, has more than 4 parameters, or would match the same paths as
    /// one already there: a mistake in the program.
    #[must_use]
    pub fn route(mut self, template: &str, methods: Methods) -> Router {
        if let Err(error) = self.matcher.insert(template, self.routes.len()) {
            panic!("the route {template:?} cannot be added: {error}");
        }
        let names = names(template);
        assert!(names.len() <= PARAMS_MAX, "{template:?} has more than {PARAMS_MAX} parameters");
        self.routes.push(Entry { template: template.to_owned(), names, methods });
        self
    }

    /// Gives all handlers a state; see [`Request::state`].
    #[must_use]
    pub fn with_state<T: Send + Sync + 'static>(mut self, state: T) -> Router {
        self.state = Some(Arc::new(state));
        self
    }

    /// Whether a route has exactly this template. A parameter that would match it does not count:
    /// the fixed path goes before it.
    pub(crate) fn has_template(&self, template: &str) -> bool {
        self.routes.iter().any(|entry| entry.template == template)
    }

    /// The worker's own copy, ready to serve.
    pub(crate) fn into_app(self) -> Rc<dyn App> {
        let state = self.state;
        let fixed = Fixed::of(&self.routes);
        let routes = self
            .routes
            .into_iter()
            .map(|entry| Served {
                allow: entry.methods.allow(),
                methods: entry.methods,
                route: Rc::new(Route {
                    template: entry.template,
                    names: entry.names,
                    state: state.clone(),
                }),
            })
            .collect();
        Rc::new(RouterApp { fixed, matcher: self.matcher, routes })
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.iter().map(|entry| &entry.template)).finish()
    }
}

/// The parameters of a template, in order: what stands between braces, without the catch-all's
/// star.
fn names(template: &str) -> Vec<String> {
    let unescaped = template.replace("{{", "").replace("}}", "");
    let mut names = Vec::new();
    for part in unescaped.split('{').skip(1) {
        if let Some((name, _)) = part.split_once('}') {
            names.push(name.trim_start_matches('*').to_owned());
        }
    }
    names
}

/// The routes without parameters, which go before all others: found at half the matcher's price.
#[derive(Default)]
struct Fixed {
    /// By the length of the path, then in order.
    by_length: Vec<Vec<(String, usize)>>,
}

impl Fixed {
    fn of(routes: &[Entry]) -> Fixed {
        let mut by_length: Vec<Vec<(String, usize)>> = Vec::new();
        for (index, Entry { template, .. }) in routes.iter().enumerate() {
            // Escaped braces are left to the matcher.
            if !template.contains(['{', '}']) {
                if by_length.len() <= template.len() {
                    by_length.resize_with(template.len() + 1, Vec::new);
                }
                by_length[template.len()].push((template.clone(), index));
            }
        }
        for paths in &mut by_length {
            paths.sort_unstable();
        }
        Fixed { by_length }
    }

    fn find(&self, path: &str) -> Option<usize> {
        let paths = self.by_length.get(path.len())?;
        let at = paths.binary_search_by(|(known, _)| known.as_str().cmp(path)).ok()?;
        Some(paths[at].1)
    }
}

/// A router on its worker.
struct RouterApp {
    fixed: Fixed,
    matcher: matchit::Router<usize>,
    routes: Vec<Served>,
}

struct Served {
    methods: Methods,
    allow: HeaderValue,
    route: Rc<Route>,
}

impl App for RouterApp {
    fn call(&self, mut request: Request) -> Answer {
        let path = request.path();
        let mut params = Params::default();
        let index = if let Some(index) = self.fixed.find(path) {
            index
        } else {
            let Ok(found) = self.matcher.at(path) else {
                return Answer::Ready(StatusCode::NOT_FOUND.into_response());
            };
            for (index, (_, value)) in found.params.iter().enumerate() {
                params.set(index, path, value);
            }
            *found.value
        };
        let served = &self.routes[index];
        request.set_route(Rc::clone(&served.route), params);
        if let Some(bytes_max) = served.methods.body_bytes_max {
            request.body_mut().limit(bytes_max);
        }
        let Some(handler) = served.methods.find(request.method()) else {
            let status = match *request.method() {
                Method::OPTIONS => StatusCode::NO_CONTENT,
                _ => StatusCode::METHOD_NOT_ALLOWED,
            };
            let response = status.into_response().with_header(ALLOW, served.allow.clone());
            return Answer::Ready(response);
        };
        if request.body_mut().is_declared_too_large() {
            return Answer::Ready(StatusCode::PAYLOAD_TOO_LARGE.into_response());
        }
        handler(request)
    }
}

/// The handlers of one route, by method.
#[derive(Clone, Default)]
pub struct Methods {
    handlers: Vec<(Method, AnyHandler)>,
    /// For every method without a handler of its own.
    fallback: Option<AnyHandler>,
    body_bytes_max: Option<u64>,
}

impl Methods {
    /// Adds a handler for `method`, in the place of any before.
    #[must_use]
    pub fn on<K>(mut self, method: Method, handler: impl Handler<K>) -> Methods {
        self.handlers.retain(|(known, _)| *known != method);
        self.handlers.push((method, erase(handler)));
        self
    }

    /// Adds a handler for GET, which also answers HEAD.
    #[must_use]
    pub fn get<K>(self, handler: impl Handler<K>) -> Methods {
        self.on(Method::GET, handler)
    }

    /// Adds a handler for POST.
    #[must_use]
    pub fn post<K>(self, handler: impl Handler<K>) -> Methods {
        self.on(Method::POST, handler)
    }

    /// Adds a handler for PUT.
    #[must_use]
    pub fn put<K>(self, handler: impl Handler<K>) -> Methods {
        self.on(Method::PUT, handler)
    }

    /// Adds a handler for PATCH.
    #[must_use]
    pub fn patch<K>(self, handler: impl Handler<K>) -> Methods {
        self.on(Method::PATCH, handler)
    }

    /// Adds a handler for DELETE.
    #[must_use]
    pub fn delete<K>(self, handler: impl Handler<K>) -> Methods {
        self.on(Method::DELETE, handler)
    }

    /// Replaces the listener's limit for request bodies on this route, in bytes.
    #[must_use]
    pub fn body_bytes_max(mut self, bytes: u64) -> Methods {
        self.body_bytes_max = Some(bytes);
        self
    }

    fn find(&self, method: &Method) -> Option<&AnyHandler> {
        let own = |wanted: &Method| {
            self.handlers.iter().find(|(known, _)| known == wanted).map(|(_, handler)| handler)
        };
        let head = if *method == Method::HEAD { own(&Method::GET) } else { None };
        own(method).or(head).or(self.fallback.as_ref())
    }

    fn allow(&self) -> HeaderValue {
        let mut allowed: Vec<&str> =
            self.handlers.iter().map(|(method, _)| method.as_str()).collect();
        if allowed.contains(&"GET") && !allowed.contains(&"HEAD") {
            allowed.push("HEAD");
        }
        if !allowed.contains(&"OPTIONS") {
            allowed.push("OPTIONS");
        }
        HeaderValue::from_str(&allowed.join(", ")).expect("methods are tokens")
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.handlers.iter().map(|(method, _)| method)).finish()
    }
}

/// Answers every method.
pub fn any<K>(handler: impl Handler<K>) -> Methods {
    Methods { fallback: Some(erase(handler)), ..Methods::default() }
}

/// Answers GET, and HEAD with it.
pub fn get<K>(handler: impl Handler<K>) -> Methods {
    Methods::default().get(handler)
}

/// Answers POST.
pub fn post<K>(handler: impl Handler<K>) -> Methods {
    Methods::default().post(handler)
}

/// Answers PUT.
pub fn put<K>(handler: impl Handler<K>) -> Methods {
    Methods::default().put(handler)
}

/// Answers PATCH.
pub fn patch<K>(handler: impl Handler<K>) -> Methods {
    Methods::default().patch(handler)
}

/// Answers DELETE.
pub fn delete<K>(handler: impl Handler<K>) -> Methods {
    Methods::default().delete(handler)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_in_templates() {
        assert_eq!(names("/a/{b}/c/{*rest}"), ["b", "rest"]);
        assert_eq!(names("/{{literal}}"), Vec::<String>::new());
    }

    #[test]
    fn allow_lists_what_is_answered() {
        let methods = get(|_: Request| "").post(|_: Request| "");
        assert_eq!(methods.allow(), "GET, POST, HEAD, OPTIONS");
    }

    #[test]
    #[should_panic(expected = "cannot be added")]
    fn two_routes_for_one_path_are_a_mistake() {
        let _router =
            Router::new().route("/{a}", get(|_: Request| "")).route("/{b}", get(|_: Request| ""));
    }
}
