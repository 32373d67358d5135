// SPDX-License-Identifier: Apache-2.0
//! A template's text in pieces: what is copied, and actions in tokens.

/// A line, from 1, and what is wrong there.
pub type Error = (usize, String);

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Copied as it is.
    Text(String),
    /// Between `{{` and `}}`.
    Action {
        /// The line it begins on.
        line: usize,
        /// What is in it.
        tokens: Vec<Token>,
    },
}

/// A word of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A keyword or a function.
    Word(String),
    /// `.`, `.a.b`.
    Field(Vec<String>),
    /// `$`, `$x`, `$x.a.b`; the name of `$` is empty.
    Variable(String, Vec<String>),
    /// A string, its escapes resolved.
    Text(String),
    /// A whole number.
    Number(i64),
    /// `(`
    Open,
    /// `)`, and the fields of what is in the parentheses.
    Close,
    /// `|`
    Pipe,
    /// `:=`
    Declare,
}

const COMMENT: (&str, &str) = ("/*", "*/");

/// Cuts a template into pieces, its trim markers obeyed.
pub fn pieces(text: &str) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while let Some(begin) = rest.find("{{") {
        let line = line_of(text, rest, begin);
        let inside = &rest[begin + 2..];
        let (left, inside) = left_marker(inside);
        push_text(&mut pieces, &rest[..begin], trim, left);
        let end = end_of(inside).ok_or((line, "this {{ has no }}".to_owned()))?;
        let (action, right) = right_marker(&inside[..end]);
        push_action(&mut pieces, action.trim(), line)?;
        rest = &inside[end + 2..];
        trim = right;
    }
    push_text(&mut pieces, rest, trim, false);
    Ok(pieces)
}

fn line_of(text: &str, rest: &str, at: usize) -> usize {
    let consumed = text.len() - rest.len() + at;
    text[..consumed].matches('\n').count() + 1
}

fn left_marker(inside: &str) -> (bool, &str) {
    match inside.strip_prefix('-') {
        Some(more) if more.starts_with(char::is_whitespace) => (true, more),
        _ => (false, inside),
    }
}

fn right_marker(action: &str) -> (&str, bool) {
    match action.strip_suffix('-') {
        Some(less) if less.ends_with(char::is_whitespace) => (less, true),
        _ => (action, false),
    }
}

/// Where `}}` is that is not in a string or a comment.
fn end_of(inside: &str) -> Option<usize> {
    if inside.trim_start().starts_with(COMMENT.0) {
        let end = inside.find(COMMENT.1)?;
        return inside[end..].find("}}").map(|more| end + more);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted && inside[at..].starts_with("}}") => return Some(at),
            _ => {}
        }
    }
    None
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    let text = if trim_start { text.trim_start() } else { text };
    let text = if trim_end { text.trim_end() } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

fn push_action(pieces: &mut Vec<Piece>, action: &str, line: usize) -> Result<(), Error> {
    if action.starts_with(COMMENT.0) {
        return Ok(());
    }
    let tokens = tokens(action).map_err(|message| (line, message))?;
    pieces.push(Piece::Action { line, tokens });
    Ok(())
}

fn tokens(action: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, used) = token(first, rest)?;
        tokens.push(token);
        rest = rest[used..].trim_start();
    }
    Ok(tokens)
}

fn token(first: char, rest: &str) -> Result<(Token, usize), String> {
    match first {
        '(' => Ok((Token::Open, 1)),
        ')' => Ok((Token::Close, 1)),
        '|' => Ok((Token::Pipe, 1)),
        ':' if rest.starts_with(":=") => Ok((Token::Declare, 2)),
        '"' => text(rest),
        '.' => Ok(path(rest, 0)),
        '$' => Ok(path(rest, 1)),
        _ if first.is_ascii_digit() => number(rest),
        _ if first.is_ascii_alphabetic() => {
            let used = word(rest);
            Ok((Token::Word(rest[..used].to_owned()), used))
        }
        _ => Err(format!("got {first:?}: see the table in template.rs")),
    }
}

fn word(rest: &str) -> usize {
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    rest.find(ends).unwrap_or(rest.len())
}

/// `.a.b` from a dot, or `$x.a.b` if a dollar is skipped.
fn path(rest: &str, skip: usize) -> (Token, usize) {
    let variable = word(&rest[skip..]) + skip;
    let mut used = variable;
    let mut fields = Vec::new();
    while rest[used..].starts_with('.') {
        let length = word(&rest[used + 1..]);
        if length > 0 {
            fields.push(rest[used + 1..used + 1 + length].to_owned());
        }
        used += 1 + length;
    }
    let token = match skip {
        0 => Token::Field(fields),
        _ => Token::Variable(rest[skip..variable].to_owned(), fields),
    };
    (token, used)
}

fn number(rest: &str) -> Result<(Token, usize), String> {
    let used = word(rest);
    let number = rest[..used].parse().map_err(|_| {
        format!(
            "got {:?}, expected a whole number in decimal",
            &rest[..used]
        )
    })?;
    Ok((Token::Number(number), used))
}

/// Go's escapes in what we write are those of JSON.
fn text(rest: &str) -> Result<(Token, usize), String> {
    let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    match strings.next() {
        Some(Ok(text)) => Ok((Token::Text(text), strings.byte_offset())),
        _ => Err(format!("got {rest:?}, expected a string")),
    }
}
