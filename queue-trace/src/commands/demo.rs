//! `queue-trace demo`: makes a case of refused handshakes in a private network
//! namespace, traces it, and says what happened.

use std::{sync::mpsc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser},
};
use jiff::tz::TimeZone;
use queue_trace_common::outcome::{self, Kind};
use tokio::sync::oneshot;

use crate::{
    kernel::{host::Host, netns::NetnsPath, selection::Selection, session},
    lab::{Family, scenario, scenario::SCENARIOS},
    options::KernelOptions,
    sink::{Json, Output, Sink, Text},
    stderr::say,
    trace::{
        stream,
        stream::{Live, Until},
    },
};

/// Options of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  queue-trace demo syn-flood --json")]
pub struct DemoArgs {
    /// Which case
    #[arg(value_name = "CASE", default_value = "accept-overflow", value_parser = cases())]
    pub case: String,

    /// Over IPv6
    #[arg(short = '6', long)]
    pub ipv6: bool,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,
}

fn cases() -> PossibleValuesParser {
    SCENARIOS
        .iter()
        .map(|case| PossibleValue::new(case.name).help(case.about))
        .collect::<Vec<_>>()
        .into()
}

/// How long records have to arrive once the traffic has ended.
const SETTLE: Duration = Duration::from_millis(300);

/// Plays the case and prints what the kernel did. Everything is gone when it returns.
///
/// # Errors
/// What keeps the case from being played, or traced.
pub async fn run(args: &DemoArgs) -> Result<()> {
    let case =
        scenario::find(&args.case).with_context(|| format!("there is no case {:?}", args.case))?;
    let family = if args.ipv6 { Family::V6 } else { Family::V4 };
    session::fit(&Host::look())?;
    let mut stage = case.prepare(family)?;
    let netns = stage.netns();
    let selection = Selection {
        outcomes: outcome::of_kind(Kind::Refusal),
        netns: [(netns.id(), Some(NetnsPath::at(netns.path())))].into(),
        ..Selection::default()
    };
    say!("demo: {}", case.about);
    // The thread that plays the case starts first: the tracer gives up privileges
    // that the case needs.
    let (go, told_to_go) = mpsc::channel();
    let (done, played) = oneshot::channel();
    let traffic = thread::spawn(move || {
        if told_to_go.recv().is_err() {
            bail!("the tracer did not attach");
        }
        let report = stage.run();
        // The receiver is gone if the stream failed; then nobody waits for this.
        let _ = done.send(());
        report.map(|report| (stage, report))
    });
    let live = Live::begin(&args.kernel, selection)?;
    live.announce();
    go.send(()).context("the case's thread failed")?;

    let output = Output::open(None)?;
    let mut sink: Box<dyn Sink> = if args.json {
        Box::new(Json::new(output))
    } else {
        let colour = output.wants_colour();
        Box::new(Text::new(output, colour, TimeZone::system()))
    };
    let until = Until {
        reader_is_gone: true,
        ..Until::default()
    };
    live.run(sink.as_mut(), until, async {
        let _ = played.await;
        tokio::time::sleep(SETTLE).await;
    })
    .await
    .map_err(|error| stream::write_error(error, "standard output"))?;
    drop(sink);

    let (stage, report) = traffic
        .join()
        .map_err(|_| anyhow!("the case's thread panicked"))??;
    drop(stage);
    say!("");
    say!("{}.", report.did);
    for imposed in &report.imposed {
        let outcome = imposed.outcome;
        if outcome.kind == Kind::Refusal {
            say!("  {:>4} times: {}.", imposed.count, outcome.says);
        }
    }
    Ok(())
}
