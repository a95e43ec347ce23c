//! Work that may take long, done in a thread of its own, so that the stream, its reader and a
//! signal do not wait for it. One piece of work at a time.

use std::{io, thread};

use tokio::sync::oneshot;

/// What the work is done with, and the work that is under way. If that is never waited for,
/// its thread ends with the process.
#[derive(Debug)]
pub struct Aside<S, T> {
    /// With nobody while work is under way.
    state: Option<S>,
    under_way: Option<oneshot::Receiver<(S, T)>>,
}

impl<S: Send + 'static, T: Send + 'static> Aside<S, T> {
    /// No work yet.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self {
            state: Some(state),
            under_way: None,
        }
    }

    /// Whether work is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// What the work is done with, unless work is under way.
    pub fn idle(&mut self) -> Option<&mut S> {
        self.state.as_mut()
    }

    /// Begins some work. Whether it did: not while other work is under way.
    ///
    /// # Errors
    /// If there can be no thread for it.
    pub fn begin(&mut self, work: impl FnOnce(&mut S) -> T + Send + 'static) -> io::Result<bool> {
        let Some(mut state) = self.state.take() else {
            return Ok(false);
        };
        let (sender, receiver) = oneshot::channel();
        thread::Builder::new().spawn(move || {
            let done = work(&mut state);
            // Nobody waits for it any more if we are ending.
            let _ = sender.send((state, done));
        })?;
        self.under_way = Some(receiver);
        Ok(true)
    }

    /// Waits for the work under way; for ever, if there is none. Nothing is lost if the wait is
    /// given up.
    ///
    /// # Errors
    /// If its thread panicked.
    pub async fn done(&mut self) -> io::Result<T> {
        let Some(under_way) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let done = under_way.await;
        self.under_way = None;
        let (state, done) =
            done.map_err(|_| io::Error::other("a thread of queue-trace panicked"))?;
        self.state = Some(state);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    fn event_loop() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    }

    #[test]
    fn others_go_on_while_it_works_and_the_state_comes_back() {
        let (go, told_to_go) = mpsc::channel::<()>();
        let mut aside = Aside::new(1);
        let work = move |state: &mut i32| {
            told_to_go.recv().unwrap();
            *state += 1;
            *state * 10
        };
        event_loop().block_on(async {
            assert!(aside.begin(work).unwrap());
            assert!(aside.is_busy() && !aside.begin(|_| 0).unwrap());
            let waited = tokio::time::timeout(Duration::from_millis(20), aside.done()).await;
            waited.unwrap_err();
            go.send(()).unwrap();
            assert_eq!(aside.done().await.unwrap(), 20);
            assert!(aside.begin(|state| *state).unwrap());
            assert_eq!(aside.done().await.unwrap(), 2);
        });
    }

    #[test]
    fn a_panic_is_an_error() {
        let mut aside: Aside<(), ()> = Aside::new(());
        event_loop().block_on(async {
            assert!(aside.begin(|()| panic!("on purpose")).unwrap());
            aside.done().await.unwrap_err();
        });
    }
}
