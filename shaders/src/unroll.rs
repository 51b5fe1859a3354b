//! Writes out the loops that a kernel marks, because WGSL has no way to ask the compiler for it.
//!
//! ```wgsl
//! for (var i = 0u; i < QUADS; i++) { // unroll
//!     sums[i] += block[i];
//! }
//! ```
//!
//! becomes `QUADS` blocks with `i` replaced by `0u`, `1u`, …: arrays are then indexed by constants, and compilers keep them
//! in registers. The bound is a `const NAME: u32 = 4u;` of the same text; the loop ends at the `}` below its `for`. Marked
//! loops may be nested.

use std::collections::HashMap;

/// Ends the first line of a loop that is to be written out.
pub const MARK: &str = "{ // unroll";

/// The text with every marked loop written out.
///
/// # Panics
/// On a marked loop of another form: the texts are those of this crate, all of which a test expands.
pub fn unroll(text: &str) -> String {
    if !text.contains(MARK) {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.lines().collect();
    let constants: HashMap<&str, u32> = lines.iter().filter_map(|line| constant(line)).collect();
    let mut out = String::with_capacity(2 * text.len());
    write_out(&lines, &constants, &mut out);
    out
}

/// Name and value of a `const NAME: u32 = 4u;`.
fn constant(line: &str) -> Option<(&str, u32)> {
    let (name, value) = line.strip_prefix("const ")?.strip_suffix("u;")?.split_once(": u32 = ")?;
    Some((name, value.parse().ok()?))
}

fn write_out<T: AsRef<str>>(lines: &[T], constants: &HashMap<&str, u32>, out: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].as_ref();
        if line.ends_with(MARK) {
            let (variable, bound) = head(line).unwrap_or_else(|| panic!("a marked loop counts from 0u to a constant: {line}"));
            let count = *constants.get(bound).unwrap_or_else(|| panic!("{bound} is no constant: {line}"));
            let indent = &line[..line.len() - line.trim_start().len()];
            let end_line = format!("{indent}}}");
            let len = lines[at..].iter().position(|line| line.as_ref() == end_line).unwrap_or_else(|| panic!("no end: {line}"));
            let body = &lines[at + 1..at + len];
            for index in 0..count {
                let copy: Vec<String> = body.iter().map(|line| with_value(line.as_ref(), variable, index)).collect();
                out.push_str(&format!("{indent}{{\n"));
                write_out(&copy, constants, out);
                out.push_str(&format!("{end_line}\n"));
            }
            at += len + 1;
        } else {
            out.push_str(line);
            out.push('\n');
            at += 1;
        }
    }
}

/// Variable and bound of `for (var i = 0u; i < BOUND; i++) { // unroll`.
fn head(line: &str) -> Option<(&str, &str)> {
    let (variable, rest) = line.trim_start().strip_prefix("for (var ")?.split_once(" = 0u; ")?;
    let (bound, step) = rest.strip_prefix(variable)?.strip_prefix(" < ")?.split_once("; ")?;
    let plain = step.strip_prefix(variable)?.strip_prefix("++) ")? == MARK;
    plain.then_some((variable, bound))
}

/// The line with the variable, where it stands as a word of its own, replaced by a number.
fn with_value(line: &str, variable: &str, value: u32) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let len = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let (piece, behind) = rest.split_at(len);
        // A name behind a full stop is a component: `v.x`.
        if piece == variable && !out.ends_with('.') {
            out.push_str(&format!("{value}u"));
        } else {
            out.push_str(piece);
        }
        rest = behind;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_loops_are_written_out_and_other_loops_stay() {
        let text = "\
const N: u32 = 2u;
const M: u32 = 1u;
for (var d = 0u; d < N; d++) {
    for (var i = 0u; i < N; i++) { // unroll
        let inner = i;
        for (var j = 0u; j < M; j++) { // unroll
            v.i += s[i * M + j];
        }
    }
}
";
        let want = "\
const N: u32 = 2u;
const M: u32 = 1u;
for (var d = 0u; d < N; d++) {
    {
        let inner = 0u;
        {
            v.i += s[0u * M + 0u];
        }
    }
    {
        let inner = 1u;
        {
            v.i += s[1u * M + 0u];
        }
    }
}
";
        assert_eq!(unroll(text), want);
    }

    #[test]
    fn a_text_without_marks_is_unchanged() {
        let text = "for (var i = 0u; i < 4u; i++) {\n    a[i] = 0u;\n}\n";
        assert_eq!(unroll(text), text);
    }
}
