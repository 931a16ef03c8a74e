//! The paths that a file names: those of its `use` declarations, taken apart, and those in its
//! code.

use crate::source::{Kind, Source, Token, closing};

/// A path as written, without generic arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
    pub(crate) in_test: bool,
    /// The modules from the crate's root to the place that names it.
    pub(crate) module: Vec<String>,
}

impl Path {
    /// Whether `segments` stand side by side in it.
    pub(crate) fn contains(&self, segments: &[&str]) -> bool {
        self.segments.windows(segments.len()).any(|window| window == segments)
    }

    /// Counted from the crate's root; `None` when it leads to another crate or is relative to names
    /// in scope.
    pub(crate) fn in_our_crate(&self) -> Option<Vec<&str>> {
        let mut module: Vec<&str> = self.module.iter().map(String::as_str).collect();
        let mut rest = self.segments.as_slice();
        match rest.first()?.as_str() {
            "crate" => (module, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {}
            _ => return None,
        }
        while let [first, tail @ ..] = rest
            && first == "super"
        {
            module.pop();
            rest = tail;
        }
        module.extend(rest.iter().map(String::as_str));
        Some(module)
    }
}

/// Every path of two or more segments, and every path of a `use`.
pub(crate) fn paths(source: &Source) -> Vec<Path> {
    let module = source.module().into_iter().map(str::to_owned).collect();
    let mut walk = Walk { tokens: &source.tokens, at: 0, module, ends: Vec::new(), found: vec![] };
    walk.read();
    walk.found
}

struct Walk<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The file's module and the inline ones around `at`.
    module: Vec<String>,
    /// Where each inline module around `at` ends.
    ends: Vec<usize>,
    found: Vec<Path>,
}

impl Walk<'_> {
    fn read(&mut self) {
        while let Some(token) = self.tokens.get(self.at) {
            while self.ends.last().is_some_and(|end| *end <= self.at) {
                self.ends.pop();
                self.module.pop();
            }
            if token.is_word("use") && !self.next_is("<") {
                self.at += 1;
                self.use_tree(&[]);
            } else if token.is_word("mod") && self.mark(2) == Some("{") {
                self.module.push(self.tokens[self.at + 1].text.clone());
                self.ends.push(closing(self.tokens, self.at + 2));
                self.at += 3;
            } else if token.kind == Kind::Word {
                let line = token.line;
                let segments = self.segments();
                if segments.len() > 1 {
                    self.push(segments, line);
                }
            } else {
                self.at += 1;
            }
        }
    }

    /// One tree of a `use`, up to the `,`, `}` or `;` behind it.
    fn use_tree(&mut self, prefix: &[String]) {
        let line = self.tokens[self.at].line;
        if self.mark(0) == Some("::") {
            self.at += 1;
        }
        let mut whole = prefix.to_vec();
        whole.extend(self.segments());
        match self.mark(0) {
            Some("{") => {
                self.at += 1;
                while self.mark(0) != Some("}") {
                    self.use_tree(&whole);
                    self.at += usize::from(self.mark(0) == Some(","));
                }
                self.at += 1;
            }
            Some("*") => {
                self.at += 1;
                whole.push("*".to_owned());
                self.push(whole, line);
            }
            _ => {
                if self.tokens[self.at].is_word("as") {
                    self.at += 2;
                }
                if whole.len() > 1 && whole.last().is_some_and(|last| last == "self") {
                    whole.pop();
                }
                self.push(whole, line);
            }
        }
    }

    /// Words joined by `::`, and the `::` behind them when no word follows it.
    fn segments(&mut self) -> Vec<String> {
        let mut segments = Vec::new();
        while let Some(token) = self.tokens.get(self.at)
            && token.kind == Kind::Word
        {
            segments.push(token.text.clone());
            self.at += 1;
            if self.mark(0) != Some("::") {
                break;
            }
            self.at += 1;
        }
        segments
    }

    fn push(&mut self, segments: Vec<String>, line: usize) {
        let in_test = self.tokens[self.at - 1].in_test;
        self.found.push(Path { segments, line, in_test, module: self.module.clone() });
    }

    fn mark(&self, ahead: usize) -> Option<&str> {
        let token = self.tokens.get(self.at + ahead)?;
        (token.kind == Kind::Mark).then_some(&token.text)
    }

    fn next_is(&self, mark: &str) -> bool {
        self.mark(1) == Some(mark)
    }
}
