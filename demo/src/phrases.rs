//! The phrasings of commands.

use crate::action::Verb;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

/// How many phrasings each list has.
pub const PHRASINGS: usize = 12;

/// The phrasings from this one on are kept for the held-out part of the personal set. The base model knows all.
pub const FIRST_HELD_OUT: usize = 9;

/// Ways to say a verb: `{x}` is the device, `{v}` the value with its unit.
pub fn phrasings(verb: Verb) -> &'static [&'static str; PHRASINGS] {
    match verb {
        Verb::On => &[
            "turn on {x}", "turn {x} on", "switch on {x}", "switch {x} on", "start {x}", "power up {x}", "get {x} going",
            "could you start {x}?", "I would like {x} on", "let {x} run", "bring {x} to life", "can you put {x} on?",
        ],
        Verb::Off => &[
            "turn off {x}", "turn {x} off", "switch off {x}", "switch {x} off", "stop {x}", "power down {x}",
            "shut {x} down", "could you stop {x}?", "I would like {x} off", "let {x} rest", "put {x} to sleep",
            "can you make {x} go quiet?",
        ],
        Verb::Set => &[
            "set {x} to {v}", "put {x} at {v}", "turn {x} to {v}", "change {x} to {v}", "adjust {x} to {v}",
            "I want {x} at {v}", "could you set {x} to {v}?", "move {x} to {v}", "keep {x} at {v}", "bring {x} to {v}",
            "let {x} go to {v}", "can you have {x} at {v}?",
        ],
        Verb::Open => &[
            "open {x}", "open up {x}", "could you open {x}?", "I would like {x} open", "have {x} opened",
            "get {x} open", "I need {x} open", "leave {x} open", "let {x} be open", "pull {x} open", "throw {x} open",
            "can you swing {x} open?",
        ],
        Verb::Close => &[
            "close {x}", "shut {x}", "could you close {x}?", "I would like {x} closed", "have {x} closed",
            "get {x} shut", "I need {x} closed", "leave {x} closed", "let {x} be closed", "pull {x} shut",
            "slide {x} closed", "can you push {x} shut?",
        ],
        Verb::Lock => &[
            "lock {x}", "lock up {x}", "could you lock {x}?", "I would like {x} locked", "have {x} locked",
            "get {x} locked", "I need {x} locked", "leave {x} locked", "keep {x} locked", "put the lock on {x}",
            "secure {x}", "can you bolt {x}?",
        ],
        Verb::Unlock => &[
            "unlock {x}", "could you unlock {x}?", "I would like {x} unlocked", "have {x} unlocked",
            "get {x} unlocked", "I need {x} unlocked", "leave {x} unlocked", "let {x} be unlocked",
            "take the lock off {x}", "undo the lock of {x}", "release {x}", "can you unbolt {x}?",
        ],
    }
}

/// Ways to ask for a routine: `{x}` is its name.
pub const ROUTINE_PHRASINGS: &[&str; PHRASINGS] = &[
    "start {x}", "begin {x}", "it is {x}", "time for {x}", "we want {x}", "get ready for {x}", "could you start {x}?",
    "let us have {x}", "I would like {x}", "prepare everything for {x}", "how about {x}?", "make the house ready for {x}",
];

/// What may stand before a command.
const OPENINGS: &[&str] = &["hey, ", "now ", "so ", "well, ", "yes, "];

/// What may stand after it.
const CLOSINGS: &[&str] = &[" now", " tonight", " before dinner", " right away", " for me", " when you can", " please"];

/// Fills a phrasing and makes it a sentence, now and then with an opening or a closing.
pub fn sentence(phrasing: &str, x: &str, value: &str, random: &mut Pcg64Mcg) -> String {
    let (body, mark) = phrasing.strip_suffix('?').map_or((phrasing, '.'), |body| (body, '?'));
    let opening = if random.random_bool(0.2) { pick(random, OPENINGS) } else { "" };
    let closing = if random.random_bool(0.2) { pick(random, CLOSINGS) } else { "" };
    let body = body.replace("{x}", x).replace("{v}", value);
    capitalise(&format!("{opening}{body}{closing}{mark}"))
}

/// One of a list.
pub fn pick<'a>(random: &mut Pcg64Mcg, list: &[&'a str]) -> &'a str {
    list[random.random_range(0..list.len())]
}

/// The same with a capital first letter.
pub fn capitalise(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
