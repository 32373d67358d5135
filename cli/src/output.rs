// SPDX-License-Identifier: Apache-2.0
//! What people see: aligned tables, colours where they can be shown, progress, errors.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// A colour, where the terminal shows any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// It is as it should be.
    Good,
    /// It should not be like this.
    Bad,
    /// It is on its way, or worth a look.
    Notable,
    /// A heading.
    Bold,
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    style: Style,
    right: bool,
}

/// Rows under headings, each column as wide as its widest cell.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// A line on stderr that says what is waited for, once it takes more than a second.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    terminal: bool,
    said: String,
    spoken: bool,
}

// === impl Style ===

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
            Self::Notable => "\x1b[33m",
            Self::Bold => "\x1b[1m",
        }
    }

    /// The text in this style, if colours are shown.
    pub fn paint(self, text: &str, colours: bool) -> String {
        if !colours || self == Self::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("{}{text}\x1b[0m", self.code())
    }
}

// === impl Cell ===

impl Cell {
    /// A cell in a style.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style,
            right: false,
        }
    }

    /// A number, to the right of its column.
    pub fn number(text: impl ToString) -> Self {
        Self {
            text: text.to_string(),
            style: Style::Plain,
            right: true,
        }
    }

    /// The same in a style.
    pub fn style(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::Plain)
    }
}

// === impl Table ===

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines of the table, each with its end.
    pub fn render(&self, colours: bool) -> String {
        let headings = self.headings.iter().enumerate();
        let headings = headings
            .map(|(column, text)| self.heading(column, text))
            .collect();
        let rows: Vec<_> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.headings.len()).map(width).collect();
        rows.iter().map(|row| line(row, &widths, colours)).collect()
    }
}

impl Table {
    /// Above numbers to the right, as they are.
    fn heading(&self, column: usize, text: &str) -> Cell {
        let first = self.rows.first().and_then(|row| row.get(column));
        Cell {
            right: first.is_some_and(|cell| cell.right),
            ..Cell::new(text, Style::Bold)
        }
    }
}

fn line(row: &[Cell], widths: &[usize], colours: bool) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        let padding = " ".repeat(width - cell.text.chars().count());
        let painted = cell.style.paint(&cell.text, colours);
        line += &if cell.right {
            padding + &painted
        } else {
            painted + &padding
        };
        line += "   ";
    }
    format!("{}\n", line.trim_end())
}

// === impl Progress ===

impl Progress {
    /// Says nothing yet.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
            terminal: io::stderr().is_terminal(),
            said: String::new(),
            spoken: false,
        }
    }

    /// What is waited for now.
    pub fn say(&mut self, what: &str) {
        let elapsed = self.started.elapsed();
        if elapsed < Duration::from_secs(1) || (!self.terminal && what == self.said) {
            return;
        }
        self.said = what.to_owned();
        self.spoken = true;
        if self.terminal {
            let what: String = what.chars().take(100).collect();
            eprint!("\r\x1b[K{what} … {}s", elapsed.as_secs());
            // A progress line that can't be shown is not worth an error.
            let _ = io::stderr().flush();
        } else {
            eprintln!("{what} …");
        }
    }

    /// Clears the line for what follows.
    pub fn end(&mut self) {
        if self.terminal && self.spoken {
            eprint!("\r\x1b[K");
        }
        self.spoken = false;
    }
}

/// Whether standard output shows colours: a terminal, and no NO_COLOR (<https://no-color.org>).
pub fn colours() -> bool {
    io::stdout().is_terminal() && may_colour()
}

fn may_colour() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Says what went wrong.
pub fn error(message: &str) {
    let label = Style::Bad.paint("error:", io::stderr().is_terminal() && may_colour());
    eprintln!("{label} {message}");
}

/// Writes to standard output. A reader that went away, such as `head`, is no error.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints a value for programs.
pub fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "N", "STATE"]);
        table.row(vec![
            "a".into(),
            Cell::number(12),
            Cell::new("ready", Style::Good),
        ]);
        table.row(vec!["lönger".into(), Cell::number(3), "".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_tail() {
        let expected = "NAME      N   STATE\na        12   ready\nlönger    3\n";
        assert_eq!(table().render(false), expected);
    }

    #[test]
    fn colours_do_not_change_the_widths() {
        let painted = table().render(true);
        assert!(painted.contains("\x1b[32mready\x1b[0m"));
        assert!(painted.ends_with("lönger    3\n"));
    }
}
