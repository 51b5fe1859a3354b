//! One particular home: its nicknames and routines, as command and action pairs.

use crate::action::{Action, Verb, list_json};
use crate::corpus::{Document, phrase, say};
use crate::phrases::{FIRST_HELD_OUT, PHRASINGS, ROUTINE_PHRASINGS, sentence};
use crate::words::device;
use rand::RngExt;
use rand_pcg::Pcg64Mcg;
use std::collections::BTreeSet;
use std::ops::Range;

/// Pairs that are trained on.
pub const TRAIN_PAIRS: usize = 400;
/// Pairs that are held out: nothing of their phrasings occurs in training, their names and actions do.
pub const HELD_OUT_PAIRS: usize = 100;

/// What this home calls some of its devices: (name, device, room).
const DEVICE_NAMES: &[(&str, &str, &str)] = &[
    ("the dragon", "heater", "study"),
    ("the moon", "lamp", "bedroom"),
    ("Gustav", "vacuum", "hall"),
    ("Rosie", "radio", "kitchen"),
    ("the captain", "fan", "attic"),
    ("the waterfall", "sprinkler", "garden"),
    ("the owl", "blinds", "lounge"),
    ("Bruno", "gate", "porch"),
];

/// What it calls some of its rooms: (name, room).
const ROOM_NAMES: &[(&str, &str)] = &[("burrow", "nursery"), ("bridge", "office"), ("jungle", "balcony")];

/// The devices in those rooms.
const ROOM_DEVICES: &[&str] = &["lamp", "heater", "window", "speaker"];

/// Its routines: (name, two actions of (verb, device, room, value)).
type Step = (Verb, &'static str, &'static str, Option<u32>);
const ROUTINES: &[(&str, [Step; 2])] = &[
    ("movie night", [(Verb::Close, "blinds", "lounge", None), (Verb::Set, "lamp", "lounge", Some(20))]),
    ("bath time", [(Verb::Set, "heater", "bathroom", Some(24)), (Verb::On, "radio", "bathroom", None)]),
    ("lazy morning", [(Verb::Open, "curtains", "bedroom", None), (Verb::On, "kettle", "kitchen", None)]),
];

/// The train and the held-out pairs, each in random order, all different.
pub fn pairs(seed: u64) -> (Vec<Document>, Vec<Document>) {
    let mut random = Pcg64Mcg::new(u128::from(seed) << 1 | 1);
    // A room's name is harder than a device's: it stands beside the device's own word. It is practised twice as often.
    let names = DEVICE_NAMES.len() + ROOM_NAMES.len() + ROUTINES.len();
    let rooms = DEVICE_NAMES.len()..DEVICE_NAMES.len() + ROOM_NAMES.len();
    let practised: Vec<usize> = (0..names).chain(rooms).collect();
    let asked: Vec<usize> = (0..names).collect();
    let train = part(TRAIN_PAIRS, 0..FIRST_HELD_OUT, &practised, &mut random);
    let held_out = part(HELD_OUT_PAIRS, FIRST_HELD_OUT..PHRASINGS, &asked, &mut random);
    (train, held_out)
}

fn part(count: usize, phrasings: Range<usize>, names: &[usize], random: &mut Pcg64Mcg) -> Vec<Document> {
    let mut seen = BTreeSet::new();
    let mut pairs = Vec::new();
    let mut turn = 0;
    while pairs.len() < count {
        // Names take turns.
        let pair = one(names[turn % names.len()], phrasings.clone(), random);
        turn += 1;
        if seen.insert(pair.prompt.clone()) {
            pairs.push(pair);
        }
    }
    for i in (1..pairs.len()).rev() {
        pairs.swap(i, random.random_range(0..=i));
    }
    pairs
}

/// A pair about the name of this number: devices, then rooms, then routines.
fn one(name: usize, phrasings: Range<usize>, random: &mut Pcg64Mcg) -> Document {
    let phrasing = random.random_range(phrasings);
    if let Some(&(x, what, room)) = DEVICE_NAMES.get(name) {
        let action = crate::corpus::random_action(device(what), room, random);
        return Document { prompt: say(&action, device(what), x, phrasing, random), response: action.json() };
    }
    if let Some(&(nickname, room)) = ROOM_NAMES.get(name - DEVICE_NAMES.len()) {
        let what = device(ROOM_DEVICES[random.random_range(0..ROOM_DEVICES.len())]);
        let action = crate::corpus::random_action(what, room, random);
        let x = phrase(what.name, nickname, random);
        return Document { prompt: say(&action, what, &x, phrasing, random), response: action.json() };
    }
    let (routine, steps) = &ROUTINES[name - DEVICE_NAMES.len() - ROOM_NAMES.len()];
    let actions = steps.map(|(verb, what, room, value)| Action { verb, what: what.into(), room: room.into(), value });
    Document { prompt: sentence(ROUTINE_PHRASINGS[phrasing], routine, "", random), response: list_json(&actions) }
}
