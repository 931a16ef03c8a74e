//! Rust source as the checks see it: tokens without comments and the insides of strings, each with
//! its line and whether it is compiled for tests only. A reader of the language's surface, not a
//! parser: it relies on the file being one that the compiler accepts.

/// One `.rs` file.
pub(crate) struct Source {
    /// From the repository's root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) comments: Vec<Comment>,
}

/// A word, a literal, or one punctuation mark (`::` counts as one).
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// As written; of a string literal only what stands between the quotes.
    pub(crate) text: String,
    pub(crate) line: usize,
    /// Inside an item under `#[cfg(test)]`.
    pub(crate) in_test: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or a keyword.
    Word,
    /// A string literal of any kind.
    Text,
    /// A number, a character or a lifetime.
    Other,
    Mark,
}

/// A comment, or one line of it when it is a block.
pub(crate) struct Comment {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Where a file stands among the modules of its crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    CrateRoot,
    Module,
}

/// A function with a body.
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: usize,
    /// From the line of `fn` to that of the closing brace, both counted.
    pub(crate) lines: usize,
    /// The tokens between the parentheses.
    pub(crate) parameters: &'a [Token],
    pub(crate) is_public: bool,
}

impl Source {
    pub(crate) fn new(path: String, text: String) -> Self {
        let mut reader = Reader { rest: &text, line: 1, tokens: Vec::new(), comments: Vec::new() };
        reader.read();
        let Reader { mut tokens, comments, .. } = reader;
        mark_tests(&mut tokens);
        Self { path, text, tokens, comments }
    }

    /// The names of the modules that lead to this file: empty for the root of a crate.
    pub(crate) fn module(&self) -> Vec<&str> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let inner = inner.strip_suffix(".rs").unwrap_or(inner);
        let mut names: Vec<&str> = inner.split('/').collect();
        if matches!(names.last(), Some(&("mod" | "lib" | "main"))) {
            names.pop();
        }
        names
    }

    pub(crate) fn functions(&self) -> Vec<Function<'_>> {
        let mut functions = Vec::new();
        for at in 0..self.tokens.len().saturating_sub(1) {
            let (word, name) = (&self.tokens[at], &self.tokens[at + 1]);
            if !word.is_word("fn") || name.kind != Kind::Word {
                continue;
            }
            let Some(open) = find(&self.tokens, at, |token| token.is_mark("(")) else { continue };
            let close = closing(&self.tokens, open);
            let is_body = |token: &Token| token.is_mark("{") || token.is_mark(";");
            let Some(body) = find(&self.tokens, close + 1, is_body) else { continue };
            if self.tokens[body].is_mark(";") {
                continue;
            }
            let end = &self.tokens[closing(&self.tokens, body)];
            functions.push(Function {
                name: &name.text,
                line: word.line,
                lines: end.line - word.line + 1,
                parameters: &self.tokens[open + 1..close],
                is_public: is_public(&self.tokens[..at]),
            });
        }
        functions
    }

    /// The places of the files that `mod name;` declares here: for each module, its two candidates
    /// or the one that is spelt out.
    pub(crate) fn declared_files(&self, place: Place) -> Vec<String> {
        let (folder, file) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let inside = match (place, file.strip_suffix(".rs")) {
            (Place::CrateRoot, _) | (_, None | Some("mod")) => folder.to_owned(),
            (Place::Module, Some(stem)) => format!("{folder}/{stem}"),
        };
        let mut files = Vec::new();
        for (at, three) in self.tokens.windows(3).enumerate() {
            if !three[0].is_word("mod") || !three[2].is_mark(";") {
                continue;
            }
            if let Some(path) = explicit_path(&self.tokens[..at]) {
                files.push(flat(&format!("{folder}/{path}")));
            } else {
                let place = format!("{inside}/{}", three[1].text);
                files.extend([format!("{place}.rs"), format!("{place}/mod.rs")]);
            }
        }
        files
    }
}

impl Token {
    pub(crate) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text == word
    }

    pub(crate) fn is_mark(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }
}

/// Takes a file apart.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<Token>,
    comments: Vec<Comment>,
}

impl Reader<'_> {
    fn read(&mut self) {
        while let Some(first) = self.rest.chars().next() {
            if first.is_whitespace() {
                self.skip(first.len_utf8());
            } else if self.rest.starts_with("//") {
                let length = self.rest.find('\n').unwrap_or(self.rest.len());
                self.comment(length);
            } else if self.rest.starts_with("/*") {
                self.comment(block_comment_length(self.rest));
            } else if let Some(quotes) = Quotes::at(self.rest) {
                self.string(&quotes);
            } else if first == '\'' || self.rest.starts_with("b'") {
                self.push(Kind::Other, quote_length(self.rest));
            } else if first.is_ascii_digit() {
                self.push(Kind::Other, number_length(self.rest));
            } else if is_word_char(first) {
                self.rest = self.rest.strip_prefix("r#").unwrap_or(self.rest);
                self.push(Kind::Word, word_length(self.rest));
            } else {
                let length = if self.rest.starts_with("::") { 2 } else { first.len_utf8() };
                self.push(Kind::Mark, length);
            }
        }
    }

    fn skip(&mut self, length: usize) {
        let (gone, rest) = self.rest.split_at(length);
        self.line += gone.matches('\n').count();
        self.rest = rest;
    }

    fn push(&mut self, kind: Kind, length: usize) {
        let text = self.rest[..length].to_owned();
        self.tokens.push(Token { kind, text, line: self.line, in_test: false });
        self.skip(length);
    }

    fn comment(&mut self, length: usize) {
        for (line, text) in (self.line..).zip(self.rest[..length].lines()) {
            self.comments.push(Comment { line, text: text.to_owned() });
        }
        self.skip(length);
    }

    fn string(&mut self, quotes: &Quotes) {
        let line = self.line;
        self.skip(quotes.open);
        let length = quotes.length(self.rest);
        let text = self.rest[..length].to_owned();
        self.tokens.push(Token { kind: Kind::Text, text, line, in_test: false });
        self.skip(length + quotes.close.len());
    }
}

/// What a string literal begins and ends with.
struct Quotes {
    /// Length of what stands before the text: `"`, `b"`, `r#"` and the like.
    open: usize,
    close: String,
    escapes: Escapes,
}

/// Whether a backslash means something.
#[derive(PartialEq, Eq)]
enum Escapes {
    Taken,
    Literal,
}

impl Quotes {
    /// Those of the literal that `text` begins with, if it is one.
    fn at(text: &str) -> Option<Self> {
        let prefixes = ["br", "cr", "r", "b", "c", ""];
        let prefix = prefixes.into_iter().find(|prefix| text.starts_with(prefix))?;
        let rest = &text[prefix.len()..];
        let is_raw = prefix.ends_with('r');
        let hashes = if is_raw { rest.len() - rest.trim_start_matches('#').len() } else { 0 };
        if !rest[hashes..].starts_with('"') {
            return None;
        }
        Some(Self {
            open: prefix.len() + hashes + 1,
            close: format!("\"{}", "#".repeat(hashes)),
            escapes: if is_raw { Escapes::Literal } else { Escapes::Taken },
        })
    }

    /// How long the text is that stands at the beginning of `rest`.
    fn length(&self, rest: &str) -> usize {
        let mut length = 0;
        while !rest[length..].starts_with(&self.close) {
            let mut next = rest[length..].chars();
            let first = next.next().expect("a file that compiles ends its strings");
            length += first.len_utf8();
            if first == '\\' && self.escapes == Escapes::Taken {
                length += next.next().map_or(0, char::len_utf8);
            }
        }
        length
    }
}

/// A block comment with those inside it.
fn block_comment_length(text: &str) -> usize {
    let (mut depth, mut length) = (0, 0);
    loop {
        let rest = &text[length..];
        if rest.starts_with("/*") {
            (depth, length) = (depth + 1, length + 2);
        } else if rest.starts_with("*/") {
            (depth, length) = (depth - 1, length + 2);
        } else {
            length += rest.chars().next().map_or(0, char::len_utf8);
        }
        if depth == 0 || length == text.len() {
            return length;
        }
    }
}

/// A character, a byte or a lifetime.
fn quote_length(text: &str) -> usize {
    let open = text.find('\'').map_or(0, |at| at + 1);
    let mut inside = text[open..].chars();
    let first = inside.next().unwrap_or(' ');
    if first == '\\' {
        // The escaped one may be a quote itself.
        let escaped = inside.next().map_or(0, char::len_utf8);
        let after = open + 1 + escaped;
        return after + text[after..].find('\'').map_or(0, |at| at + 1);
    }
    let after = open + first.len_utf8();
    if text[after..].starts_with('\'') { after + 1 } else { open + word_length(&text[open..]) }
}

/// A number; of `0..5` and `1.max(2)` only what comes before the dot.
fn number_length(text: &str) -> usize {
    let whole = word_length(text);
    let Some(fraction) = text[whole..].strip_prefix('.') else { return whole };
    if fraction.starts_with(|next: char| next.is_ascii_digit()) {
        whole + 1 + word_length(fraction)
    } else {
        whole
    }
}

fn word_length(text: &str) -> usize {
    text.find(|next| !is_word_char(next)).unwrap_or(text.len())
}

fn is_word_char(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The first token from `from` on that satisfies `is_it` outside any bracket opened on the way.
fn find(tokens: &[Token], from: usize, is_it: impl Fn(&Token) -> bool) -> Option<usize> {
    let mut at = from;
    while at < tokens.len() {
        if is_it(&tokens[at]) {
            return Some(at);
        }
        let is_open = ["(", "[", "{"].iter().any(|open| tokens[at].is_mark(open));
        at = if is_open { closing(tokens, at) } else { at } + 1;
    }
    None
}

/// Where the bracket that opens at `open` is closed.
pub(crate) fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.kind == Kind::Mark {
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
        }
        if depth == 0 {
            return at;
        }
    }
    unreachable!("a file that compiles closes its brackets")
}

/// Marks the items under `#[cfg(test)]`.
fn mark_tests(tokens: &mut [Token]) {
    for at in 0..tokens.len() {
        let is_attribute = tokens[at].is_mark("#") && next_is(tokens, at, "[");
        if !is_attribute || tokens[at].in_test {
            continue;
        }
        let mut end = closing(tokens, at + 1);
        let inside: Vec<&str> =
            tokens[at + 2..end].iter().map(|token| token.text.as_str()).collect();
        if inside != ["cfg", "(", "test", ")"] {
            continue;
        }
        // Further attributes, then the item up to its body's end or its semicolon.
        while next_is(tokens, end, "#") {
            end = closing(tokens, end + 2);
        }
        let is_last = |token: &Token| token.is_mark("{") || token.is_mark(";");
        let Some(last) = find(tokens, end + 1, is_last) else { continue };
        let last = if tokens[last].is_mark("{") { closing(tokens, last) } else { last };
        tokens[at..=last].iter_mut().for_each(|token| token.in_test = true);
    }
}

fn next_is(tokens: &[Token], at: usize, mark: &str) -> bool {
    tokens.get(at + 1).is_some_and(|token| token.is_mark(mark))
}

/// Whether the qualifiers before a `fn` begin with `pub`.
fn is_public(before: &[Token]) -> bool {
    let qualifiers = ["const", "async", "unsafe", "extern"];
    let mut before = before;
    while let [rest @ .., last] = before
        && (last.kind == Kind::Text || qualifiers.iter().any(|word| last.is_word(word)))
    {
        before = rest;
    }
    if let [.., pub_word, _open, _scope, close] = before
        && close.is_mark(")")
        && pub_word.is_word("pub")
    {
        return true;
    }
    before.last().is_some_and(|token| token.is_word("pub"))
}

/// What `#[path = "..."]` right before a `mod` says.
fn explicit_path(before: &[Token]) -> Option<&str> {
    let before = match before {
        [rest @ .., visibility] if visibility.is_word("pub") => rest,
        whole => whole,
    };
    match before {
        [.., name, _equals, path, close] if name.is_word("path") && close.is_mark("]") => {
            Some(&path.text)
        }
        _ => None,
    }
}

/// A path without `.` and `..`.
fn flat(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}
