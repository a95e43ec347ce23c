//! Words from outside, made fit for a terminal: the names of processes, units and containers, which
//! any user of the machine may choose, paths, and all that stands in a recording.
//!
//! This is the one place that says what is not printed as it is: control characters,
//! which move a terminal's cursor or send it commands; characters without width and those that
//! turn the direction of text, which make one name look like another. They become
//! `\x1b`, `\u{202e}` and so on. JSON does without it: there they are exact.

use std::{
    borrow::Cow,
    fmt::{self, Display, Write as _},
};

/// Whether a character does anything but stand there.
#[must_use]
pub const fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    !matches!(
        c,
        // C1 controls.
        '\u{80}'..='\u{9f}'
        // Soft hyphen; marks and embeddings of direction, Arabic and Mongolian ones with them.
        | '\u{ad}' | '\u{61c}' | '\u{180e}'
        // Spaces and joiners without width, marks of direction.
        | '\u{200b}'..='\u{200f}'
        // Ends of lines and paragraphs, embeddings and overrides of direction.
        | '\u{2028}'..='\u{202e}'
        // Joiners, invisible operators, isolates of direction, deprecated format characters.
        | '\u{2060}'..='\u{206f}'
        // Fillers that look like nothing.
        | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}'
        // Byte order mark, annotations, noncharacters, variation selectors, tags.
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A word from outside. Displayed, it is printable.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Widths and precisions are of what is shown.
        f.pad(&printable(self.0))
    }
}

/// The word as it can be printed; borrowed, if it can be as it is.
#[must_use]
pub fn printable(word: &str) -> Cow<'_, str> {
    if word.chars().all(is_printable) {
        return Cow::Borrowed(word);
    }
    let mut text = String::with_capacity(word.len() + 16);
    for c in word.chars() {
        push(&mut text, c);
    }
    Cow::Owned(text)
}

fn push(text: &mut String, c: char) {
    // A string takes whatever is written to it.
    let _ = match c {
        c if is_printable(c) => text.write_char(c),
        '\n' => text.write_str("\\n"),
        '\t' => text.write_str("\\t"),
        '\r' => text.write_str("\\r"),
        c if c.is_ascii() => write!(text, "\\x{:02x}", u32::from(c)),
        c => write!(text, "\\u{{{:x}}}", u32::from(c)),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        for (word, shown) in [
            ("nginx", "nginx"),
            ("Bücher 本 🦀", "Bücher 本 🦀"),
            ("a\x1b[2Jb", "a\\x1b[2Jb"),
            ("a\nready: b\t\r", "a\\nready: b\\t\\r"),
            ("\x7f\u{9b}31m", "\\x7f\\u{9b}31m"),
            ("user\u{202e}toor", "user\\u{202e}toor"),
            (
                "ss\u{200b}hd\u{2066}\u{feff}",
                "ss\\u{200b}hd\\u{2066}\\u{feff}",
            ),
        ] {
            assert_eq!(printable(word), shown);
            assert_eq!(printable(&printable(word)), shown, "it is shown once");
        }
        assert_eq!(format!("[{:<6}]", Printable("a\n")), "[a\\n   ]");
    }

    #[test]
    fn all_controls_are_spelled_out() {
        for c in (0..=u32::from(char::MAX))
            .filter_map(char::from_u32)
            .filter(|c| c.is_control())
        {
            assert!(!is_printable(c), "{c:?}");
        }
    }
}
