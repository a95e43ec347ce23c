//! The table of episodes: when each listener refused, for how long, and how bad it was.

use maud::{Markup, html};

use super::parts::{identity, left_out};
use crate::diagnose::{
    case::{History, Key},
    episode::{Episode, Trouble},
    when::{between, duration, refused},
};

/// Episodes in the table.
const EPISODES: usize = 200;

/// The episodes of all listeners, in the order of time.
pub(super) fn table(listeners: &[(&Key, &History)]) -> Markup {
    let mut all: Vec<(&Key, &History, Episode)> = Vec::new();
    let mut sums = 0;
    for (key, history) in listeners {
        for trouble in Trouble::ALL {
            let episodes = history.detector.episodes(trouble);
            all.extend(episodes.into_iter().map(|one| (*key, *history, one)));
            let rest = history.detector.rest(trouble).values();
            sums += rest.map(|rest| rest.times).sum::<u64>();
        }
    }
    all.sort_by_key(|(key, _, episode)| (episode.begin_ns, **key));
    html! {
        section aria-labelledby="episodes" {
            h2 #episodes { "Episodes" }
            p.soft { "A time in which one listener refused, or answered with SYN cookies, with at most a few calm seconds inside. Times are UTC." }
            @if all.is_empty() { p { "There was none." } }
            @else {
                div.scroll { table {
                    thead { tr {
                        th scope="col" { "When" } th scope="col" { "Listener" } th scope="col" { "What" } th scope="col" { "Refused, or answered with cookies" }
                        th.n scope="col" { "Worst second" } th.n scope="col" { "Deepest" } th.n scope="col" { "Limit" } th.n scope="col" { "Left" }
                        th.n scope="col" { "Nothing taken for" }
                    } }
                    tbody { @for (key, history, episode) in all.iter().take(EPISODES) {
                        tr {
                            th scope="row" {
                                (between(episode.begin_ns, episode.end_ns).trim_end_matches(" UTC"))
                                @if episode.ongoing { br; span.soft { "goes on" } }
                            }
                            td { (history.name()) br; span.soft { (identity(key)) } }
                            td { (episode.trouble.words()) }
                            td { (refused(episode)) }
                            td.n { (episode.worst_second) }
                            td.n { (deepest(episode)) }
                            td.n { (limit(episode)) }
                            td.n { (number(episode.left)) }
                            td.n { (still(episode)) }
                        }
                    } }
                } }
                (left_out(all.len(), EPISODES, "episodes"))
                @if sums > 0 { p.soft { (sums) " milder ones are known as sums alone." } }
            }
        }
    }
}

fn deepest(episode: &Episode) -> String {
    let depth = match episode.trouble {
        Trouble::AcceptQueueFull => episode.deepest,
        Trouble::SynQueueFull => episode.deepest_syn,
        Trouble::NoListener => None,
    };
    number(depth.map(u64::from))
}

fn limit(episode: &Episode) -> String {
    match episode.limit {
        Some((least, most)) if least != most => format!("{least} to {most}"),
        limit => number(limit.map(|(_, most)| most.into())),
    }
}

fn still(episode: &Episode) -> String {
    match episode.trouble {
        Trouble::AcceptQueueFull if episode.longest_still_ns > 0 => {
            duration(episode.longest_still_ns)
        }
        _ => "–".to_owned(),
    }
}

fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), |number| number.to_string())
}
