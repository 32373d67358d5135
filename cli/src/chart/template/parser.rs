// SPDX-License-Identifier: Apache-2.0
//! Pieces as a tree.

use super::lexer::{Error, Piece, Token};

/// A template as it is rendered, and what it defines.
#[derive(Debug, Default)]
pub struct Parsed {
    /// What is rendered.
    pub body: Vec<Node>,
    /// What others may include.
    pub defines: Vec<Define>,
}

/// A body with a name.
#[derive(Debug)]
pub struct Define {
    /// The name.
    pub name: String,
    /// The line of its `define`.
    pub line: usize,
    /// What it renders.
    pub body: Vec<Node>,
}

/// What is rendered.
#[derive(Debug)]
pub enum Node {
    /// Copied as it is.
    Text(String),
    /// The value of a pipeline, printed.
    Print(Pipeline),
    /// A variable's value.
    Declare(String, Pipeline),
    /// The first branch whose condition holds, or else the rest.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    /// The body for each element of a list.
    Range(Pipeline, Vec<Node>),
}

/// Commands, each of which gets what the one before it gave.
#[derive(Debug)]
pub struct Pipeline {
    /// The line of the action.
    pub line: usize,
    /// At least one.
    pub commands: Vec<Command>,
}

/// What a pipeline consists of.
#[derive(Debug)]
pub enum Command {
    /// A value.
    Value(Operand),
    /// A function and its arguments.
    Call(String, Vec<Operand>),
}

/// A value.
#[derive(Debug)]
pub enum Operand {
    /// `.a.b`
    Field(Vec<String>),
    /// `$x.a.b`
    Variable(String, Vec<String>),
    /// A literal.
    Literal(serde_json::Value),
    /// What is in parentheses.
    Pipeline(Pipeline),
}

/// What a body is followed by.
enum After {
    Nothing,
    End,
    Else(usize, Vec<Token>),
}

struct Parser<'a> {
    pieces: std::slice::Iter<'a, Piece>,
    defines: Vec<Define>,
}

/// Makes a tree of pieces.
pub fn parse(pieces: &[Piece]) -> Result<Parsed, Error> {
    let mut parser = Parser {
        pieces: pieces.iter(),
        defines: Vec::new(),
    };
    match parser.body()? {
        (body, After::Nothing) => Ok(Parsed {
            body,
            defines: parser.defines,
        }),
        (_, After::Else(line, _)) => Err((line, "this else has no if".to_owned())),
        (_, After::End) => Err((last_line(pieces), "one end too many".to_owned())),
    }
}

fn last_line(pieces: &[Piece]) -> usize {
    let lines = pieces.iter().filter_map(|piece| match piece {
        Piece::Action { line, .. } => Some(*line),
        Piece::Text(_) => None,
    });
    lines.max().unwrap_or(1)
}

// === impl Parser ===

impl Parser<'_> {
    fn body(&mut self) -> Result<(Vec<Node>, After), Error> {
        let mut body = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (line, tokens) = match piece {
                Piece::Text(text) => {
                    body.push(Node::Text(text.clone()));
                    continue;
                }
                Piece::Action { line, tokens } => (*line, tokens.as_slice()),
            };
            match keyword(tokens) {
                Some("end") => return Ok((body, After::End)),
                Some("else") => return Ok((body, After::Else(line, tokens[1..].to_vec()))),
                Some("define") => self.define(line, &tokens[1..])?,
                _ => body.push(self.node(line, tokens)?),
            }
        }
        Ok((body, After::Nothing))
    }

    fn node(&mut self, line: usize, tokens: &[Token]) -> Result<Node, Error> {
        match (keyword(tokens), tokens) {
            (Some("if"), _) => self.branches(line, &tokens[1..]),
            (Some("range"), _) => {
                let over = pipeline(line, &tokens[1..])?;
                let body = self.ended(line, "range")?;
                Ok(Node::Range(over, body))
            }
            (_, [Token::Variable(name, fields), Token::Declare, more @ ..])
                if fields.is_empty() =>
            {
                Ok(Node::Declare(name.clone(), pipeline(line, more)?))
            }
            _ => Ok(Node::Print(pipeline(line, tokens)?)),
        }
    }

    fn branches(&mut self, line: usize, condition: &[Token]) -> Result<Node, Error> {
        let mut branches = Vec::new();
        let mut condition = pipeline(line, condition)?;
        loop {
            let (body, end) = self.body()?;
            branches.push((condition, body));
            match end {
                After::End => return Ok(Node::If(branches, Vec::new())),
                After::Nothing => return Err((line, "this if has no end".to_owned())),
                After::Else(_, tokens) if tokens.is_empty() => {
                    return Ok(Node::If(branches, self.ended(line, "if")?));
                }
                After::Else(line, tokens) if keyword(&tokens) == Some("if") => {
                    condition = pipeline(line, &tokens[1..])?;
                }
                After::Else(line, _) => {
                    return Err((line, "expected else, or else if".to_owned()));
                }
            }
        }
    }

    fn define(&mut self, line: usize, tokens: &[Token]) -> Result<(), Error> {
        let [Token::Text(name)] = tokens else {
            return Err((line, "expected define \"name\"".to_owned()));
        };
        let body = self.ended(line, "define")?;
        self.defines.push(Define {
            name: name.clone(),
            line,
            body,
        });
        Ok(())
    }

    fn ended(&mut self, line: usize, of: &str) -> Result<Vec<Node>, Error> {
        match self.body()? {
            (body, After::End) => Ok(body),
            _ => Err((line, format!("this {of} has no end"))),
        }
    }
}

fn keyword(tokens: &[Token]) -> Option<&str> {
    match tokens.first() {
        Some(Token::Word(word)) => Some(word),
        _ => None,
    }
}

fn pipeline(line: usize, tokens: &[Token]) -> Result<Pipeline, Error> {
    let mut tokens = tokens;
    let pipeline = commands(line, &mut tokens)?;
    match tokens {
        [] => Ok(pipeline),
        _ => Err((line, "one ) too many".to_owned())),
    }
}

/// As far as the end, or the parenthesis that closes.
fn commands(line: usize, tokens: &mut &[Token]) -> Result<Pipeline, Error> {
    let mut commands = vec![command(line, tokens)?];
    while let [Token::Pipe, rest @ ..] = tokens {
        *tokens = rest;
        commands.push(command(line, tokens)?);
    }
    Ok(Pipeline { line, commands })
}

fn command(line: usize, tokens: &mut &[Token]) -> Result<Command, Error> {
    if let [Token::Word(name), rest @ ..] = tokens
        && literal(name).is_none()
    {
        *tokens = rest;
        let mut arguments = Vec::new();
        while let Some(argument) = operand(line, tokens)? {
            arguments.push(argument);
        }
        return Ok(Command::Call(name.clone(), arguments));
    }
    match operand(line, tokens)? {
        Some(value) => Ok(Command::Value(value)),
        None => Err((line, "expected a value or a function".to_owned())),
    }
}

fn literal(word: &str) -> Option<bool> {
    word.parse().ok()
}

fn operand(line: usize, tokens: &mut &[Token]) -> Result<Option<Operand>, Error> {
    let [first, rest @ ..] = *tokens else {
        return Ok(None);
    };
    let operand = match first {
        Token::Field(fields) => Operand::Field(fields.clone()),
        Token::Variable(name, fields) => Operand::Variable(name.clone(), fields.clone()),
        Token::Text(text) => Operand::Literal(text.as_str().into()),
        Token::Number(number) => Operand::Literal((*number).into()),
        Token::Word(word) => match literal(word) {
            Some(truth) => Operand::Literal(truth.into()),
            None => {
                return Err((
                    line,
                    format!(
                        "got {word:?}, expected a value: a call as an argument is in parentheses"
                    ),
                ));
            }
        },
        Token::Open => return parentheses(line, tokens).map(Some),
        Token::Declare => return Err((line, "got :=, expected a value".to_owned())),
        Token::Close | Token::Pipe => return Ok(None),
    };
    *tokens = rest;
    Ok(Some(operand))
}

fn parentheses(line: usize, tokens: &mut &[Token]) -> Result<Operand, Error> {
    *tokens = &tokens[1..];
    let inside = commands(line, tokens)?;
    let [Token::Close, rest @ ..] = *tokens else {
        return Err((line, "this ( has no )".to_owned()));
    };
    *tokens = rest;
    Ok(Operand::Pipeline(inside))
}
