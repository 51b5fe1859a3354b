//! The words of homes: rooms, devices with what they can do, people, and names that a household might give to things.

use crate::action::Verb;

/// Rooms that every home might have; the base model knows them all.
pub const ROOMS: &[&str] = &[
    "kitchen", "bedroom", "bathroom", "study", "hall", "lounge", "attic", "garage", "garden", "nursery", "office",
    "cellar", "pantry", "porch", "balcony", "workshop",
];

/// The unit of a device's setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nothing to set.
    None,
    /// 10 to 90 percent in steps of 5.
    Percent,
    /// 15 to 25 degrees.
    Degrees,
}

impl Unit {
    /// All settings of this unit.
    pub fn values(self) -> Vec<u32> {
        match self {
            Unit::None => Vec::new(),
            Unit::Percent => (10..=90).step_by(5).collect(),
            Unit::Degrees => (15..=25).collect(),
        }
    }

    /// The word behind the number.
    pub fn word(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Percent => " percent",
            Unit::Degrees => " degrees",
        }
    }
}

/// A kind of device.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Its word.
    pub name: &'static str,
    /// What can be done with it.
    pub verbs: &'static [Verb],
    /// What it is set in.
    pub unit: Unit,
    /// What it is for, for questions: "A lamp …".
    pub purpose: &'static str,
}

const SWITCH: &[Verb] = &[Verb::On, Verb::Off];
const DIAL: &[Verb] = &[Verb::On, Verb::Off, Verb::Set];
const COVER: &[Verb] = &[Verb::Open, Verb::Close];
const DOOR: &[Verb] = &[Verb::Open, Verb::Close, Verb::Lock, Verb::Unlock];

/// Devices that every home might have; the base model knows them all.
pub const DEVICES: &[Device] = &[
    Device { name: "lamp", verbs: DIAL, unit: Unit::Percent, purpose: "gives light when it is dark" },
    Device { name: "heater", verbs: DIAL, unit: Unit::Degrees, purpose: "makes a cold room warm" },
    Device { name: "fan", verbs: DIAL, unit: Unit::Percent, purpose: "moves the air on hot days" },
    Device { name: "radio", verbs: DIAL, unit: Unit::Percent, purpose: "plays the news and old songs" },
    Device { name: "speaker", verbs: DIAL, unit: Unit::Percent, purpose: "plays music for everyone" },
    Device { name: "television", verbs: DIAL, unit: Unit::Percent, purpose: "shows films and games" },
    Device { name: "boiler", verbs: DIAL, unit: Unit::Degrees, purpose: "keeps the water warm" },
    Device { name: "vacuum", verbs: SWITCH, unit: Unit::None, purpose: "cleans the floor by itself" },
    Device { name: "kettle", verbs: SWITCH, unit: Unit::None, purpose: "boils water for tea" },
    Device { name: "sprinkler", verbs: SWITCH, unit: Unit::None, purpose: "waters the plants" },
    Device { name: "projector", verbs: SWITCH, unit: Unit::None, purpose: "throws a film on the wall" },
    Device { name: "fountain", verbs: SWITCH, unit: Unit::None, purpose: "lets water dance" },
    Device { name: "window", verbs: COVER, unit: Unit::None, purpose: "lets fresh air in" },
    Device { name: "blinds", verbs: COVER, unit: Unit::None, purpose: "keep the sun out" },
    Device { name: "curtains", verbs: COVER, unit: Unit::None, purpose: "hide the night" },
    Device { name: "door", verbs: DOOR, unit: Unit::None, purpose: "keeps the weather out" },
    Device { name: "gate", verbs: DOOR, unit: Unit::None, purpose: "keeps the dog inside" },
];

/// The device of this name.
pub fn device(name: &str) -> &'static Device {
    DEVICES.iter().find(|device| device.name == name).expect("a device of the list")
}

/// People in stories; some households call a device by such a name.
pub const PEOPLE: &[&str] = &[
    "Mia", "Noah", "Ella", "Oskar", "Lena", "Hugo", "Clara", "Emil", "Frida", "Anton", "Gustav", "Rosie", "Bruno",
    "Wilma", "Theo", "Ada", "Karl", "Nora", "Otto", "Greta",
];

/// Nouns that a household may use as a name for a device: each follows "the".
pub const NICKNAMES: &[&str] = &[
    "dragon", "moon", "waterfall", "captain", "whale", "robot", "giant", "toad", "comet", "wizard", "beast", "parrot",
    "rocket", "ghost", "owl", "walrus", "pirate", "duchess", "monster", "hamster", "tiger", "snail", "volcano",
    "butler", "trumpet", "mammoth", "sphinx", "goblin", "fox", "raven",
];

/// Nouns that a household may use as a name for a room: each follows "the".
pub const ROOM_NICKNAMES: &[&str] = &[
    "burrow", "bridge", "jungle", "cave", "nest", "castle", "harbour", "tower", "den", "island", "lighthouse", "stable",
    "tavern", "palace", "tunnel", "meadow",
];

/// First words of a routine's name.
pub const ROUTINE_FIRST: &[&str] =
    &["movie", "bath", "lazy", "game", "story", "tea", "party", "quiet", "rainy", "soup", "piano", "winter"];

/// Second words of a routine's name.
pub const ROUTINE_SECOND: &[&str] = &["night", "time", "morning", "hour", "evening"];
