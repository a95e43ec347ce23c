//! OTLP over HTTP, as protobuf: metrics at an interval, refusals as log records. What cannot
//! be delivered is tried again, and the queue is bounded: counts are cumulative, so a later
//! request carries what an earlier one lost; log records that find no room are counted.

mod attributes;
mod client;
mod logs;
mod metrics;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use tokio::time::{Instant, MissedTickBehavior, sleep};

pub use self::{
    client::{Endpoint, Sent},
    logs::Refusal,
};
use super::board::Board;

/// How often metrics are sent.
const INTERVAL: Duration = Duration::from_secs(15);
/// How often log records are sent.
const LOGS: Duration = Duration::from_secs(1);
/// Log records in a request.
const BATCH: usize = 512;
/// Log records that wait.
const WAITING: usize = 4096;
/// The shortest and the longest wait before another try.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// The refusals that wait to be sent.
#[derive(Debug, Default)]
pub struct RefusalQueue(Mutex<VecDeque<Refusal>>);

impl RefusalQueue {
    /// One more; the oldest goes if there is no room. Whether it went.
    pub fn push(&self, refusal: Refusal) -> bool {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = queue.len() >= WAITING;
        if full {
            queue.pop_front();
        }
        queue.push_back(refusal);
        full
    }

    fn take(&self) -> Vec<Refusal> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let many = queue.len().min(BATCH);
        queue.drain(..many).collect()
    }
}

/// Sends metrics until it is dropped.
pub async fn send_metrics(endpoint: Arc<Endpoint>, board: Arc<Board>, host: String) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pause = PAUSE[0];
    loop {
        tick.tick().await;
        loop {
            let body = metrics::request(&board.exposition(), &host).encode_to_vec();
            let sent = endpoint.send("metrics", body).await;
            count(&board, "metrics", &sent, 1);
            let Sent::Later(asked) = sent else {
                pause = PAUSE[0];
                break;
            };
            // What is sent then is newer.
            sleep(asked.unwrap_or(pause).min(PAUSE[1])).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }
}

/// Sends refusals until it is dropped.
pub async fn send_logs(
    endpoint: Arc<Endpoint>,
    queue: Arc<RefusalQueue>,
    board: Arc<Board>,
    host: String,
) {
    /// So long a batch is tried; then newer ones are worth more.
    const GIVES_UP: Duration = Duration::from_secs(300);
    loop {
        sleep(LOGS).await;
        let batch = queue.take();
        if batch.is_empty() {
            continue;
        }
        let body = logs::request(&batch, &host).encode_to_vec();
        let began = Instant::now();
        let mut pause = PAUSE[0];
        loop {
            let sent = endpoint.send("logs", body.clone()).await;
            let over = matches!(sent, Sent::Later(_)) && began.elapsed() > GIVES_UP;
            count(&board, "logs", if over { &Sent::Refused } else { &sent }, 1);
            let Sent::Later(asked) = sent else { break };
            if over {
                break;
            }
            sleep(asked.unwrap_or(pause).min(PAUSE[1])).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }
}

fn count(board: &Board, signal: &'static str, sent: &Sent, by: u64) {
    let result = match sent {
        Sent::Accepted => "accepted",
        Sent::Later(_) => "retried",
        Sent::Refused => "dropped",
    };
    *board.state().host.otlp.entry((signal, result)).or_default() += by;
}
