//! The engine: an interpreter with its script, bound to the thread it was made on.

use std::{cell::Cell, convert::Infallible, io, rc::Rc};

use axum::{body::Body, extract::Request, response::Response};
use bodyguard::bridge::{Cx, Next, NextError};
use rhai::{AST, EvalAltResult, FuncArgs, Scope};

const SCRIPT: &str = r#"
    fn title(rows) {
        if rows < 0 { throw "less than nothing" }
        `${rows} teas`
    }

    fn row(n) {
        let teas = ["black tea", "green tea", "white tea"];
        let tea = teas[n - 1];
        // Async code, awaited by the host while the script waits.
        `${n} ${tea}: ${stock(tea)} in stock`
    }
"#;

/// Not `Send`: the interpreter counts its references without atomics, as it does best.
pub(crate) struct Engine {
    interpreter: rhai::Engine,
    script: AST,
    calls: Rc<Cell<usize>>,
}

/// Makes the engine of this request and keeps it on the request's thread, until its end.
pub(crate) fn middleware(
    cx: &Cx,
    request: Request,
    next: Next<Body, Body, Infallible>,
) -> Result<Response, NextError<Infallible>> {
    cx.insert(Engine::new());
    next.run(cx, request)
}

impl Engine {
    fn new() -> Self {
        let mut interpreter = rhai::Engine::new();
        interpreter.set_max_operations(100_000);
        interpreter.register_fn("stock", stock);
        let script = interpreter.compile(SCRIPT).expect("the script is fixed");
        Self {
            interpreter,
            script,
            calls: Rc::default(),
        }
    }

    /// The engine of the request that the calling thread works for.
    pub(crate) fn of(cx: &Cx) -> io::Result<Rc<Self>> {
        let missing = || io::Error::other("no engine: its middleware is missing");
        cx.get().ok_or_else(missing)
    }

    /// Calls a function of the script.
    pub(crate) fn call(&self, name: &str, args: impl FuncArgs) -> io::Result<String> {
        self.calls.set(self.calls.get() + 1);
        let mut scope = Scope::new();
        let called = self
            .interpreter
            .call_fn(&mut scope, &self.script, name, args);
        called.map_err(|error| io::Error::other(error.to_string()))
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.get()
    }
}

/// Called by the script, deep inside the interpreter, which has no room for our `Cx`.
fn stock(tea: &str) -> Result<i64, Box<EvalAltResult>> {
    let looked_up = Cx::with_current(|cx| cx.block_on(look_up(tea)));
    match looked_up {
        Some(Ok(count)) => Ok(count),
        Some(Err(error)) => Err(error.to_string().into()),
        None => Err("not on a bridge thread".into()),
    }
}

/// Stands for a query over the network.
async fn look_up(tea: &str) -> i64 {
    tokio::task::yield_now().await;
    match tea {
        "black tea" => 24,
        "green tea" => 17,
        _ => 5,
    }
}
