// SPDX-License-Identifier: Apache-2.0
//! Renders a tree.

use serde_json::Value;

use super::{
    Fault, Templates, functions,
    parser::{Command, Node, Operand, Pipeline},
};

/// How deep templates may include each other.
const DEPTH: usize = 20;

struct Renderer<'a> {
    templates: &'a Templates,
    file: &'a str,
    root: &'a Value,
    variables: Vec<(&'a str, Value)>,
    depth: usize,
    out: String,
}

/// Renders a body of a file.
pub fn render(
    templates: &Templates,
    file: &str,
    body: &[Node],
    data: &Value,
) -> Result<String, Fault> {
    Renderer::new(templates, file, data, 0).rendered(body)
}

// === impl Renderer ===

impl<'a> Renderer<'a> {
    fn new(templates: &'a Templates, file: &'a str, root: &'a Value, depth: usize) -> Self {
        Self {
            templates,
            file,
            root,
            variables: Vec::new(),
            depth,
            out: String::new(),
        }
    }

    fn rendered(mut self, body: &'a [Node]) -> Result<String, Fault> {
        self.body(body, self.root)?;
        Ok(self.out)
    }

    /// Variables live until the end of the body that declares them.
    fn body(&mut self, body: &'a [Node], dot: &Value) -> Result<(), Fault> {
        let variables = self.variables.len();
        for node in body {
            self.node(node, dot)?;
        }
        self.variables.truncate(variables);
        Ok(())
    }

    fn node(&mut self, node: &'a Node, dot: &Value) -> Result<(), Fault> {
        match node {
            Node::Text(text) => self.out += text,
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out += &functions::print(&value).map_err(|m| self.fault(pipeline.line, m))?;
            }
            Node::Declare(name, pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.variables.push((name, value));
            }
            Node::If(branches, otherwise) => return self.branches(branches, otherwise, dot),
            Node::Range(over, body) => return self.range(over, body, dot),
        }
        Ok(())
    }

    fn branches(
        &mut self,
        branches: &'a [(Pipeline, Vec<Node>)],
        otherwise: &'a [Node],
        dot: &Value,
    ) -> Result<(), Fault> {
        for (condition, body) in branches {
            if functions::truth(&self.pipeline(condition, dot)?) {
                return self.body(body, dot);
            }
        }
        self.body(otherwise, dot)
    }

    fn range(&mut self, over: &'a Pipeline, body: &'a [Node], dot: &Value) -> Result<(), Fault> {
        let Value::Array(elements) = self.pipeline(over, dot)? else {
            return Err(self.fault(over.line, "range: expected a list".to_owned()));
        };
        elements
            .iter()
            .try_for_each(|element| self.body(body, element))
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, Fault> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, last, dot, pipeline.line)?);
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn command(
        &self,
        command: &Command,
        last: Option<Value>,
        dot: &Value,
        line: usize,
    ) -> Result<Value, Fault> {
        match (command, last) {
            (Command::Value(operand), None) => self.operand(operand, dot, line),
            (Command::Value(_), Some(_)) => {
                Err(self.fault(line, "expected a function after |".to_owned()))
            }
            (Command::Call(name, arguments), last) => {
                let arguments = arguments
                    .iter()
                    .map(|argument| self.operand(argument, dot, line));
                let mut arguments = arguments.collect::<Result<Vec<_>, _>>()?;
                arguments.extend(last);
                self.call(name, &arguments, line)
            }
        }
    }

    fn call(&self, name: &str, arguments: &[Value], line: usize) -> Result<Value, Fault> {
        if name == "include" {
            return self.include(arguments, line);
        }
        functions::call(name, arguments)
            .map_err(|message| self.fault(line, format!("{name}: {message}")))
    }

    fn include(&self, arguments: &[Value], line: usize) -> Result<Value, Fault> {
        let [Value::String(name), data] = arguments else {
            return Err(self.fault(line, "expected include \"name\" value".to_owned()));
        };
        let Some(define) = self.templates.defines.get(name) else {
            return Err(self.fault(line, format!("include: nothing defines {name:?}")));
        };
        if self.depth == DEPTH {
            return Err(self.fault(line, format!("include: {name:?} includes itself")));
        }
        let included = Renderer::new(self.templates, &define.file, data, self.depth + 1);
        included.rendered(&define.body).map(Value::String)
    }

    fn operand(&self, operand: &Operand, dot: &Value, line: usize) -> Result<Value, Fault> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Pipeline(pipeline) => self.pipeline(pipeline, dot),
            Operand::Field(fields) => self.fields(dot, "", fields, line),
            Operand::Variable(name, fields) if name.is_empty() => {
                self.fields(self.root, "$", fields, line)
            }
            Operand::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let Some((_, value)) = found else {
                    return Err(self.fault(line, format!("${name} is not declared")));
                };
                self.fields(value, &format!("${name}"), fields, line)
            }
        }
    }

    fn fields(
        &self,
        of: &Value,
        name: &str,
        fields: &[String],
        line: usize,
    ) -> Result<Value, Fault> {
        let mut value = of;
        for (at, field) in fields.iter().enumerate() {
            value = value.get(field).ok_or_else(|| {
                let path = fields[..=at].join(".");
                self.fault(line, format!("there is no value {name}.{path}"))
            })?;
        }
        Ok(value.clone())
    }

    fn fault(&self, line: usize, message: String) -> Fault {
        Fault::new(self.file, line, message)
    }
}
