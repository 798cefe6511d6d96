//! How deep the values are that a template keeps.
//!
//! What the engine does with a value (writing, comparing, dropping it) recurses into what the value holds, and neither
//! fuel nor its limit of recursion counts that: a list in a list in a list, made by a loop a hundred thousand times, or a
//! namespace that holds itself, ends the process by a stack overflow. So what is assigned passes through a filter that
//! [`bound_assignments`] writes into the template.

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// The deepest value of a variable; conversations have 4 levels.
const DEEPEST: usize = 64;
/// Values looked at for a unit of fuel: less work than an instruction. The engine charges for copies besides.
const VALUES_PER_FUEL: u64 = 32;
/// For variables: checks.
const CHECKED: &str = "_checked";
/// For attributes of namespaces, which outlive the loop that they are set in: copies, so that none holds itself.
const COPIED: &str = "_copied";

/// What a thread needs that renders. Between two assignments a value becomes deeper by the brackets of an expression (150
/// at most) at each level of blocks and calls (500 at most), of some hundred bytes of the stack each.
pub(crate) const STACK_BYTES: usize = 128 << 20;

/// Adds the filters that [`bound_assignments`] uses.
pub(crate) fn add_filters(environment: &mut Environment<'_>) {
    let filter = |is_copy: bool| {
        move |state: &mut State, value: Value| {
            let mut walk = Walk { is_copy, values: 0 };
            let bounded = walk.bounded(state, value, 0)?;
            state.consume_fuel(1 + walk.values / VALUES_PER_FUEL)?;
            Ok::<Value, Error>(bounded)
        }
    };
    environment.add_filter(CHECKED, filter(false));
    environment.add_filter(COPIED, filter(true));
}

/// The template with a filter behind what each `set` assigns.
pub(crate) fn bound_assignments(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    let mut bounded = String::with_capacity(source.len());
    let mut done = 0;
    let mut tokens = tokenize(source, false, syntax);
    let mut is_block_start = false;
    while let Some(token) = tokens.next().transpose()? {
        if is_block_start && matches!(token.0, Token::Ident("set")) {
            for (at, text) in assignment(&mut tokens)? {
                bounded.push_str(source.get(done..at).unwrap_or_default());
                bounded.push_str(&text);
                done = at;
            }
        }
        is_block_start = matches!(token.0, Token::BlockStart);
    }
    bounded.push_str(source.get(done..).unwrap_or_default());
    Ok(bounded)
}

/// What is to be written where into one `set`, whose tokens are read to their end.
fn assignment<'a>(
    tokens: &mut impl Iterator<Item = Result<(Token<'a>, Span), Error>>,
) -> Result<Vec<(usize, String)>, Error> {
    let mut filter = CHECKED;
    let mut value = None;
    let mut is_block_with_filter = false;
    while let Some((token, span)) = tokens.next().transpose()? {
        match token {
            Token::Dot if value.is_none() && !is_block_with_filter => filter = COPIED,
            Token::Assign if value.is_none() && !is_block_with_filter => {
                value = Some(span.end_offset as usize)
            }
            Token::Pipe if value.is_none() => is_block_with_filter = true,
            Token::BlockEnd => {
                let end = span.start_offset as usize;
                return Ok(match value {
                    Some(start) => vec![(start, "(".to_owned()), (end, format!(")|{filter} "))],
                    None if is_block_with_filter => vec![(end, format!("|{filter} "))],
                    None => Vec::new(),
                });
            }
            _ => {}
        }
    }
    Ok(Vec::new())
}

/// A way through a value.
struct Walk {
    is_copy: bool,
    values: u64,
}

impl Walk {
    /// The value, which is at most [`DEEPEST`] deep; lists that are computed when they are read are lists now.
    fn bounded(&mut self, state: &mut State, value: Value, depth: usize) -> Result<Value, Error> {
        self.count(state)?;
        if depth > DEEPEST {
            let problem = format!("a value that is nested more than {DEEPEST} deep");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let is_copy = self.is_copy || value.kind() == ValueKind::Iterable;
                let items = value.try_iter()?.map(|item| self.bounded(state, item, depth + 1));
                let items: Vec<Value> = items.collect::<Result<_, _>>()?;
                Ok(if is_copy { Value::from(items) } else { value })
            }
            ValueKind::Map => {
                let pairs = value.try_iter()?.map(|key| {
                    let item = value.get_item(&key)?;
                    Ok((key, self.bounded(state, item, depth + 1)?))
                });
                let pairs: Vec<(Value, Value)> = pairs.collect::<Result<_, Error>>()?;
                Ok(if self.is_copy { Value::from_pairs(pairs) } else { value })
            }
            // It may hold the variables around it.
            ValueKind::Plain | ValueKind::Invalid if self.is_copy => {
                Err(Error::new(ErrorKind::InvalidOperation, "a namespace keeps data only"))
            }
            _ => Ok(value),
        }
    }

    /// Counts a value, and pays for many at once, so that a list that holds a list twice, and so on, ends.
    fn count(&mut self, state: &mut State) -> Result<(), Error> {
        const PAID_AT_ONCE: u64 = 1024;
        self.values += 1;
        if self.values == PAID_AT_ONCE {
            self.values = 0;
            state.consume_fuel(PAID_AT_ONCE / VALUES_PER_FUEL)?;
        }
        Ok(())
    }
}
