//! What the base model reads: stories, questions and answers, and commands of many random homes.

use crate::action::{Action, Verb, ask_json, list_json};
use crate::phrases::{PHRASINGS, ROUTINE_PHRASINGS, capitalise, phrasings, pick, sentence};
use crate::words::{DEVICES, Device, NICKNAMES, PEOPLE, ROOM_NICKNAMES, ROOMS, ROUTINE_FIRST, ROUTINE_SECOND};
use rand::RngExt;
use rand_pcg::Pcg64Mcg;

/// A text the base model learns: an optional prompt and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What is asked; empty for a story.
    pub prompt: String,
    /// What follows.
    pub response: String,
}

/// Writes one document; the mix is by shares of ten.
pub fn document(random: &mut Pcg64Mcg) -> Document {
    match random.random_range(0..20) {
        0..=7 => command(random),
        8 | 9 => two_commands(random),
        10..=13 => named_in_context(random),
        14 | 15 => unknown_name(random),
        16 | 17 => question(random),
        _ => Document { prompt: String::new(), response: story(random) },
    }
}

/// A device of a random home, as the people there speak of it.
struct Thing {
    device: &'static Device,
    room: &'static str,
}

impl Thing {
    fn random(random: &mut Pcg64Mcg) -> Self {
        Self { device: &DEVICES[random.random_range(0..DEVICES.len())], room: pick(random, ROOMS) }
    }

    fn phrase(&self, random: &mut Pcg64Mcg) -> String {
        phrase(self.device.name, self.room, random)
    }

    fn action(&self, random: &mut Pcg64Mcg) -> Action {
        random_action(self.device, self.room, random)
    }
}

/// "the lamp in the study", "the study lamp", "the lamp of the study".
pub fn phrase(device: &str, room: &str, random: &mut Pcg64Mcg) -> String {
    match random.random_range(0..10) {
        0..=4 => format!("the {device} in the {room}"),
        5..=7 => format!("the {room} {device}"),
        _ => format!("the {device} of the {room}"),
    }
}

/// Something that can be done with this device.
pub fn random_action(device: &Device, room: &str, random: &mut Pcg64Mcg) -> Action {
    let verb = device.verbs[random.random_range(0..device.verbs.len())];
    let values = device.unit.values();
    let value = (verb == Verb::Set).then(|| values[random.random_range(0..values.len())]);
    Action { verb, what: device.name.into(), room: room.into(), value }
}

/// A command for this action in one of its phrasings.
pub fn say(action: &Action, device: &Device, x: &str, phrasing: usize, random: &mut Pcg64Mcg) -> String {
    let value = action.value.map(|value| format!("{value}{}", device.unit.word())).unwrap_or_default();
    sentence(phrasings(action.verb)[phrasing], x, &value, random)
}

fn any_phrasing(random: &mut Pcg64Mcg) -> usize {
    random.random_range(0..PHRASINGS)
}

fn command(random: &mut Pcg64Mcg) -> Document {
    let thing = Thing::random(random);
    let action = thing.action(random);
    let x = thing.phrase(random);
    let phrasing = any_phrasing(random);
    Document { prompt: say(&action, thing.device, &x, phrasing, random), response: action.json() }
}

/// "Turn on the lamp in the study and close the hall window."
fn two_commands(random: &mut Pcg64Mcg) -> Document {
    let (text, actions) = joined(random);
    Document { prompt: format!("{}.", capitalise(&text)), response: list_json(&actions) }
}

fn joined(random: &mut Pcg64Mcg) -> (String, [Action; 2]) {
    let mut half = || {
        let thing = Thing::random(random);
        let action = thing.action(random);
        let x = thing.phrase(random);
        // The plain phrasings come first in each list; questions do not join well.
        let phrasing = phrasings(action.verb)[random.random_range(0..2)];
        let value = action.value.map(|value| format!("{value}{}", thing.device.unit.word())).unwrap_or_default();
        (phrasing.replace("{x}", &x).replace("{v}", &value).replace('?', ""), action)
    };
    let (first, second) = (half(), half());
    (format!("{} and {}", first.0, second.0), [first.1, second.1])
}

/// A name for a device: "the dragon", or a person's name.
fn device_name(random: &mut Pcg64Mcg) -> String {
    if random.random_bool(0.3) { pick(random, PEOPLE).to_string() } else { format!("the {}", pick(random, NICKNAMES)) }
}

fn routine_name(random: &mut Pcg64Mcg) -> String {
    format!("{} {}", pick(random, ROUTINE_FIRST), pick(random, ROUTINE_SECOND))
}

/// A home says what it calls its things, then uses one of the names.
fn named_in_context(random: &mut Pcg64Mcg) -> Document {
    match random.random_range(0..6) {
        0..=2 => {
            let things = [Thing::random(random), Thing::random(random)];
            let names = [device_name(random), device_name(random)];
            let known = if random.random_bool(0.5) && names[0] != names[1] { 2 } else { 1 };
            let mut lines: Vec<String> = (0..known)
                .map(|i| {
                    let x = things[i].phrase(random);
                    if random.random_bool(0.5) {
                        format!("{} is {x}.", capitalise(&names[i]))
                    } else {
                        format!("We call {x} {}.", names[i])
                    }
                })
                .collect();
            let asked = random.random_range(0..known);
            let action = things[asked].action(random);
            let phrasing = any_phrasing(random);
            lines.push(say(&action, things[asked].device, &names[asked], phrasing, random));
            Document { prompt: lines.join("\n"), response: action.json() }
        }
        3 | 4 => {
            let thing = Thing::random(random);
            let name = pick(random, ROOM_NICKNAMES);
            let definition = if random.random_bool(0.5) {
                format!("The {name} is the {}.", thing.room)
            } else {
                format!("We call the {} the {name}.", thing.room)
            };
            let action = thing.action(random);
            let x = phrase(thing.device.name, name, random);
            let phrasing = any_phrasing(random);
            let command = say(&action, thing.device, &x, phrasing, random);
            Document { prompt: format!("{definition}\n{command}"), response: action.json() }
        }
        _ => {
            let (text, actions) = joined(random);
            let name = routine_name(random);
            let phrasing = ROUTINE_PHRASINGS[any_phrasing(random)];
            let command = sentence(phrasing, &name, "", random);
            Document { prompt: format!("{} means {text}.\n{command}", capitalise(&name)), response: list_json(&actions) }
        }
    }
}

/// A command with a name that was never explained: ask back.
fn unknown_name(random: &mut Pcg64Mcg) -> Document {
    let thing = Thing::random(random);
    let action = thing.action(random);
    let phrasing = any_phrasing(random);
    match random.random_range(0..5) {
        0..=2 => {
            let name = device_name(random);
            let prompt = say(&action, thing.device, &name, phrasing, random);
            Document { prompt, response: ask_json(name.trim_start_matches("the ")) }
        }
        3 => {
            let name = pick(random, ROOM_NICKNAMES);
            let x = phrase(thing.device.name, name, random);
            Document { prompt: say(&action, thing.device, &x, phrasing, random), response: ask_json(name) }
        }
        _ => {
            let name = routine_name(random);
            let prompt = sentence(ROUTINE_PHRASINGS[phrasing], &name, "", random);
            Document { prompt, response: ask_json(&name) }
        }
    }
}

fn question(random: &mut Pcg64Mcg) -> Document {
    let device = &DEVICES[random.random_range(0..DEVICES.len())];
    let (person, room) = (pick(random, PEOPLE), pick(random, ROOMS));
    let (name, purpose) = (device.name, device.purpose);
    let plural = name.ends_with('s');
    match random.random_range(0..4) {
        0 if plural => Document { prompt: format!("What are {name} for?"), response: format!("They {purpose}.") },
        0 => Document { prompt: format!("What is a {name} for?"), response: format!("It {purpose}.") },
        1 => Document {
            prompt: format!("{person} is in the {room}. Where is {person}?"),
            response: format!("In the {room}."),
        },
        2 => Document {
            prompt: format!("{} put the {name} in the {room}. What is in the {room}?", person),
            response: format!("The {name}."),
        },
        _ => {
            let verb = device.verbs[random.random_range(0..device.verbs.len())];
            let (done, answer) = match verb {
                Verb::On | Verb::Set => ("turned on", "on"),
                Verb::Off => ("turned off", "off"),
                Verb::Open => ("opened", "open"),
                Verb::Close => ("closed", "closed"),
                Verb::Lock => ("locked", "locked"),
                Verb::Unlock => ("unlocked", "unlocked"),
            };
            let (are, they) = if plural { ("Are", "They are") } else { ("Is", "It is") };
            Document {
                prompt: format!("{person} {done} the {name}. {are} the {name} {answer}?"),
                response: format!("Yes. {they} {answer}."),
            }
        }
    }
}

/// A few sentences about people at home.
fn story(random: &mut Pcg64Mcg) -> String {
    let (hero, friend) = (pick(random, PEOPLE), pick(random, PEOPLE));
    let room = pick(random, ROOMS);
    let mut lines = vec![match random.random_range(0..4) {
        0 => format!("{hero} lives in a {} house with a {}.", pick(random, SIZES), room),
        1 => format!("It was a {} {}, and {hero} sat in the {room}.", pick(random, WEATHER), pick(random, DAYTIMES)),
        2 => format!("One {} {hero} and {friend} were in the {room}.", pick(random, DAYTIMES)),
        _ => format!("{hero} had a {} dream about a {}.", pick(random, WEATHER), pick(random, NICKNAMES)),
    }];
    for _ in 0..random.random_range(1..4) {
        let device = DEVICES[random.random_range(0..DEVICES.len())].name;
        lines.push(match random.random_range(0..7) {
            0 => format!("The {device} made a {} sound.", pick(random, SOUNDS)),
            1 => format!("{friend} told a story of a {} and a {}.", pick(random, NICKNAMES), pick(random, NICKNAMES)),
            2 => format!("They played that the {} was a {}.", pick(random, ROOMS), pick(random, ROOM_NICKNAMES)),
            3 => format!("Then {friend} came in from the {} and laughed.", pick(random, ROOMS)),
            4 => format!("They looked for the {} in the {}.", pick(random, THINGS), pick(random, ROOMS)),
            5 => format!("It was {}, so they waited beside the {device}.", routine_name(random)),
            _ => format!("{hero} felt {} and made some {}.", pick(random, FEELINGS), pick(random, MEALS)),
        });
    }
    lines.push(match random.random_range(0..3) {
        0 => format!("In the end everyone was {}.", pick(random, FEELINGS)),
        1 => format!("Then {hero} went to sleep in the {}.", pick(random, ROOMS)),
        _ => format!("What a {} {}!", pick(random, WEATHER), pick(random, DAYTIMES)),
    });
    lines.join(" ")
}

const SIZES: &[&str] = &["small", "big", "narrow", "crooked", "bright", "very old"];
const WEATHER: &[&str] = &["cold", "warm", "windy", "quiet", "long", "strange", "lovely"];
const DAYTIMES: &[&str] = &["morning", "evening", "night", "day", "Sunday", "winter"];
const SOUNDS: &[&str] = &["soft", "loud", "funny", "deep", "new"];
const THINGS: &[&str] = &["cat", "keys", "old map", "red ball", "cake", "blanket", "letter"];
const FEELINGS: &[&str] = &["happy", "tired", "hungry", "proud", "brave", "calm"];
const MEALS: &[&str] = &["soup", "tea", "bread", "pancakes", "rice"];
