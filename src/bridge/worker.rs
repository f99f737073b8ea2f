//! One thread of the pool: from session to session until it has been idle too long.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
};

use tokio::runtime::Runtime;

use super::{
    error::BridgeError,
    local,
    pool::{Idle, Shared},
    session::Session,
};
use crate::scope::quietly;

/// What an idle thread is woken for.
pub(super) enum Wake {
    Serve(Arc<Session>),
    Exit,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    id: u64,
    /// On its thread, which may not be there to be had.
    pub(super) running: bool,
    /// Its thread serves no other, although nothing panicked.
    spoilt: bool,
    signed_off: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, id: u64) -> Self {
        Self {
            shared,
            id,
            running: false,
            spoilt: false,
            signed_off: false,
        }
    }

    pub(super) fn run(mut self, first: Arc<Session>) {
        self.running = true;
        let (wake, woken) = mpsc::channel();
        let mut next = Some(first);
        let mut runtime = None;
        loop {
            let session = match next.take() {
                Some(session) => session,
                None => match self.wait(&woken) {
                    Some(session) => session,
                    None => return,
                },
            };
            let finished = match runtime.take().map_or_else(new_loop, Ok) {
                Ok(fresh) => {
                    let served = local::serve(session, fresh);
                    runtime = served.unused;
                    if served.spoilt {
                        self.spoilt = true;
                        drop(self);
                        return quietly(|| drop(served.finished));
                    }
                    served.finished
                }
                Err(error) => {
                    session.fail(&BridgeError::start(error));
                    None
                }
            };
            let Ok(coming) = self.check_in(&wake) else {
                quietly(|| drop(finished));
                return;
            };
            next = coming;
            // Whoever waited for the close finds the thread free, or already at work again.
            quietly(|| drop(finished));
            if next.is_none() && runtime.is_none() {
                runtime = new_loop().ok();
            }
        }
    }

    /// The next in line, or a place among the idle; `Err` when the pool is gone.
    pub(super) fn check_in(&self, wake: &mpsc::Sender<Wake>) -> Result<Option<Arc<Session>>, ()> {
        let mut state = self.shared.lock();
        state.serving.remove(&self.id);
        if let Some(session) = state.queue.pop_front() {
            state.serving.insert(self.id, Arc::downgrade(&session));
            return Ok(Some(session));
        }
        if state.closed {
            return Err(());
        }
        state.idle.push(Idle {
            id: self.id,
            wake: wake.clone(),
        });
        Ok(None)
    }

    fn wait(&mut self, woken: &mpsc::Receiver<Wake>) -> Option<Arc<Session>> {
        let mut wake = woken.recv_timeout(self.shared.config.idle_timeout);
        if let Err(RecvTimeoutError::Timeout) = wake {
            let mut state = self.shared.lock();
            if let Some(at) = state.idle.iter().position(|idle| idle.id == self.id) {
                state.idle.remove(at);
                // In one step with leaving the list, or a session could get in line for nobody.
                state.threads -= 1;
                self.signed_off = true;
                return None;
            }
            drop(state);
            // Taken off the list in the meantime: a message is on its way.
            wake = woken.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        match wake {
            Ok(Wake::Serve(session)) => Some(session),
            Ok(Wake::Exit) | Err(_) => None,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.signed_off {
            let mut state = self.shared.lock();
            state.threads -= 1;
            state.serving.remove(&self.id);
            state.idle.retain(|idle| idle.id != self.id);
            // No panic of a request's should come this far; if one does, the line is not to wait for ever.
            if self.running && (self.spoilt || thread::panicking()) {
                if let Some(session) = state.queue.pop_front() {
                    self.shared.start(state, session);
                }
            }
        }
    }
}

/// A loop for one request.
fn new_loop() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
