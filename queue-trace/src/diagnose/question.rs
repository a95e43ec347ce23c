//! What somebody asks about: one port, one service, one device.

/// What was asked, and what the answer can rest on.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The filters that ask, as they are on the command line.
    pub words: Vec<String>,
    /// Whether the open listeners were listed.
    pub listed: bool,
    /// The filters that were at work before; `None` if that is not known.
    pub made_with: Option<Vec<String>>,
    /// Why some listeners may have been left out, a sentence each.
    pub unlisted: Vec<String>,
    /// Events of which is not known whether they fit.
    pub unplaced: u64,
}
