//! `queue-trace` without a command: the live stream, in the form asked for.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use queue_trace_common::settings::MAX_NETNS;

#[cfg(target_os = "linux")]
pub use self::live::run;
use crate::{
    model::clients::Prefixes,
    options::{Filters, KernelOptions, duration},
    sink::{Limit, Rotation},
};

/// Options of the live stream.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub filters: Filters,

    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Stop after this time, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Limit of records a second from each CPU; the others come as counts each second.
    /// 0: no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub rate: u32,

    /// Prefix lengths (IPv4,IPv6) by which clients are grouped
    #[arg(long, value_name = "V4,V6", default_value = "24,64")]
    pub networks: Prefixes,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    /// Write to this file instead of standard output; compressed if it ends in .zst or .gz
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Begin a new file at this size or after this time, e.g. 100M or 1h; FILE.jsonl becomes
    /// FILE.000001.jsonl and so on
    #[arg(long, value_name = "SIZE|TIME", value_parser = limit, requires = "output", requires = "json")]
    pub rotate: Option<Limit>,

    /// Keep only this many files, the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "rotate")]
    pub keep: Option<u64>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,

    /// Say more on standard error; -vv shows the kernel side's own messages
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl TraceArgs {
    /// How the recording is divided into files, if it is.
    #[must_use]
    pub fn rotation(&self) -> Option<Rotation> {
        self.rotate.map(|limit| Rotation {
            limit,
            keep: self.keep,
        })
    }

    /// What clap cannot check value by value.
    ///
    /// # Errors
    /// A sentence that names the option.
    pub fn check(&self) -> Result<(), String> {
        if self.filters.listeners.netns.len() > MAX_NETNS {
            return Err(format!("--netns can be given {MAX_NETNS} times at most"));
        }
        Ok(())
    }
}

/// A size like 100M, or else a time.
fn limit(text: &str) -> Result<Limit, String> {
    let (digits, shift) = match text.trim_end_matches('B').char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M')) => (&text[..at], 20),
        Some((at, 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    if shift != 0
        && let Ok(number) = digits.parse::<u64>()
    {
        return match number.checked_mul(1 << shift) {
            Some(0) => Err("must be more than nothing".to_owned()),
            Some(bytes) => Ok(Limit::Size(bytes)),
            None => Err("more than any disk holds".to_owned()),
        };
    }
    duration(text)
        .map(Limit::Time)
        .map_err(|_| "neither a size like 64K, 100M or 1G nor a time like 5m or 1h".to_owned())
}

#[cfg(target_os = "linux")]
mod live {
    //! What needs a kernel to watch.

    use std::path::PathBuf;

    use anyhow::Result;
    use jiff::tz::TimeZone;

    use super::TraceArgs;
    use crate::{
        kernel::{host::Host, selection::Selection, session},
        recording::{Narrowed, select::Only},
        sink::{Json, Output, Rotating, Sink, Text},
        stderr::say,
        trace::stream::{Live, Until, write_error},
    };

    /// `queue-trace` without a command: the live stream, in the form asked for.
    ///
    /// # Errors
    /// What keeps it from attaching, or the output from being written.
    pub async fn run(args: &TraceArgs) -> Result<()> {
        let selection = Selection {
            rate: args.rate,
            networks: args.networks,
            debug: args.verbose >= 2,
            ..Selection::of(&args.filters)?
        };
        session::fit(&Host::look())?;
        // Before attaching: a file that cannot be written costs nothing yet. What is in its
        // place stays until it is known that there is something to write.
        let target = StreamTarget::prepare(args)?;
        let live = Live::begin(&args.kernel, selection)?;
        let until = Until {
            count: args.count,
            duration: args.duration,
            reader_is_gone: target.is_standard_output(),
        };
        let name = target.name();
        let mut sink = target.begin(args.json)?;
        live.announce();
        let listeners = &args.filters.listeners;
        let forever = std::future::pending();
        let ran = if listeners.name_owners() {
            let mut only = Only::in_user_space(listeners);
            let mut narrowed = Narrowed::new(sink.as_mut(), &mut only);
            let ran = live.run(&mut narrowed, until, forever).await;
            let left_out = only.finish();
            for note in left_out.notes().into_iter().chain(left_out.nobody()) {
                say!("note: {note}");
            }
            ran
        } else {
            live.run(sink.as_mut(), until, forever).await
        };
        ran.map_err(|error| write_error(error, &name))
    }

    /// Where the stream goes, before it is known that there will be one.
    enum StreamTarget {
        Files(PathBuf, Box<Rotating>),
        Output(Output),
    }

    impl StreamTarget {
        fn prepare(args: &TraceArgs) -> Result<Self> {
            Ok(match (args.rotation(), &args.output) {
                (Some(rotation), Some(path)) => {
                    let rotating = Rotating::prepare(path, rotation)?;
                    Self::Files(path.clone(), Box::new(rotating))
                }
                (_, path) => Self::Output(Output::open(path.as_deref())?),
            })
        }

        fn is_standard_output(&self) -> bool {
            matches!(self, Self::Output(output) if output.is_standard())
        }

        /// As the user knows it.
        fn name(&self) -> String {
            match self {
                Self::Files(path, _) => path.display().to_string(),
                Self::Output(output) => output.name(),
            }
        }

        fn begin(self, json: bool) -> Result<Box<dyn Sink>> {
            let mut output = match self {
                Self::Files(_, rotating) => return Ok(rotating),
                Self::Output(output) => output,
            };
            // A recording can be read while it is written.
            output.appear()?;
            Ok(if json {
                Box::new(Json::new(output))
            } else {
                let colour = output.wants_colour();
                Box::new(Text::new(output, colour, TimeZone::system()))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_full_by_size_or_by_time() {
        assert_eq!(limit("64K"), Ok(Limit::Size(64 << 10)));
        assert_eq!(limit("100MB"), Ok(Limit::Size(100 << 20)));
        assert_eq!(limit("2G"), Ok(Limit::Size(2 << 30)));
        assert_eq!(limit("90s"), Ok(Limit::Time(Duration::from_secs(90))));
        // A small m is minutes, as in all times.
        assert_eq!(limit("5m"), Ok(Limit::Time(Duration::from_secs(300))));
    }
}
