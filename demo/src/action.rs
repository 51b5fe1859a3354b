//! Commands in their structured form: what a home should do, as compact JSON.

/// What is done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Switch on.
    On,
    /// Switch off.
    Off,
    /// Set to a value.
    Set,
    /// Open.
    Open,
    /// Close.
    Close,
    /// Lock.
    Lock,
    /// Unlock.
    Unlock,
}

impl Verb {
    /// The word in the JSON.
    pub fn word(self) -> &'static str {
        match self {
            Verb::On => "on",
            Verb::Off => "off",
            Verb::Set => "set",
            Verb::Open => "open",
            Verb::Close => "close",
            Verb::Lock => "lock",
            Verb::Unlock => "unlock",
        }
    }
}

/// One action on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub verb: Verb,
    /// The device's common word.
    pub what: String,
    /// The room's common word.
    pub room: String,
    /// The setting, for [`Verb::Set`].
    pub value: Option<u32>,
}

impl Action {
    /// `{"do":"set","what":"heater","where":"study","value":21}`.
    pub fn json(&self) -> String {
        let value = self.value.map(|value| format!(",\"value\":{value}")).unwrap_or_default();
        format!("{{\"do\":\"{}\",\"what\":\"{}\",\"where\":\"{}\"{value}}}", self.verb.word(), self.what, self.room)
    }
}

/// Several actions: a JSON list.
pub fn list_json(actions: &[Action]) -> String {
    format!("[{}]", actions.iter().map(Action::json).collect::<Vec<_>>().join(","))
}

/// What the base model answers to a name it was not told about: it asks back.
pub fn ask_json(name: &str) -> String {
    format!("{{\"ask\":\"{name}\"}}")
}
