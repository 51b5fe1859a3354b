//! The grammar writes what the demo needs: enough pairs, phrasings kept apart, the same text for the same seed.

use barycenter_demo::action::Verb;
use barycenter_demo::phrases::{FIRST_HELD_OUT, PHRASINGS, ROUTINE_PHRASINGS, phrasings};
use barycenter_demo::{corpus, household};
use rand_pcg::Pcg64Mcg;
use std::collections::BTreeSet;

const VERBS: [Verb; 7] = [Verb::On, Verb::Off, Verb::Set, Verb::Open, Verb::Close, Verb::Lock, Verb::Unlock];

#[test]
fn the_same_seed_writes_the_same_texts() {
    assert_eq!(household::pairs(3), household::pairs(3));
    assert_ne!(household::pairs(3), household::pairs(4));
    let texts = |seed| {
        let mut random = Pcg64Mcg::new(seed);
        (0..200).map(|_| corpus::document(&mut random)).collect::<Vec<_>>()
    };
    assert_eq!(texts(5), texts(5));
}

#[test]
fn the_personal_set_has_its_size_and_no_prompt_twice() {
    let (train, held_out) = household::pairs(1);
    assert_eq!((train.len(), held_out.len()), (household::TRAIN_PAIRS, household::HELD_OUT_PAIRS));
    let prompts: BTreeSet<_> = train.iter().chain(&held_out).map(|pair| &pair.prompt).collect();
    assert_eq!(prompts.len(), train.len() + held_out.len());
}

#[test]
fn every_name_is_heard_in_both_parts() {
    let (train, held_out) = household::pairs(1);
    let names = [
        "dragon", "moon", "Gustav", "Rosie", "captain", "waterfall", "owl", "Bruno", "burrow", "bridge", "jungle",
        "movie night", "bath time", "lazy morning",
    ];
    for name in names {
        let heard = |pairs: &[corpus::Document]| pairs.iter().filter(|pair| pair.prompt.contains(name)).count();
        assert!(heard(&train) >= 15, "{name} is heard {} times", heard(&train));
        assert!(heard(&held_out) >= 3, "{name} is asked {} times", heard(&held_out));
    }
}

/// The fixed words of a phrasing, as they would be found in a prompt.
fn fixed_words(phrasing: &str) -> Vec<String> {
    phrasing.trim_end_matches('?').split("{x}").flat_map(|part| part.split("{v}")).map(|part| part.trim().to_lowercase()).collect()
}

fn says(prompt: &str, phrasing: &str) -> bool {
    let prompt = prompt.to_lowercase();
    let words = fixed_words(phrasing);
    let mut rest = prompt.as_str();
    // In order, and the first right at the start, after at most an opening word.
    for word in words.iter().filter(|word| !word.is_empty()) {
        match rest.find(word.as_str()) {
            Some(at) => rest = &rest[at + word.len()..],
            None => return false,
        }
    }
    prompt.starts_with(words[0].as_str()) || prompt.split_once(' ').is_some_and(|(_, rest)| rest.starts_with(words[0].as_str()))
}

#[test]
fn held_out_phrasings_are_not_trained_on() {
    let (train, held_out) = household::pairs(1);
    let kept: Vec<&str> = VERBS
        .iter()
        .flat_map(|&verb| &phrasings(verb)[FIRST_HELD_OUT..])
        .chain(&ROUTINE_PHRASINGS[FIRST_HELD_OUT..])
        .copied()
        .collect();
    assert_eq!(kept.len(), 8 * (PHRASINGS - FIRST_HELD_OUT));
    for pair in &train {
        let said: Vec<_> = kept.iter().filter(|phrasing| says(&pair.prompt, phrasing)).collect();
        assert!(said.is_empty(), "{} says {said:?}", pair.prompt);
    }
    for pair in &held_out {
        assert!(kept.iter().any(|phrasing| says(&pair.prompt, phrasing)), "{} says none of them", pair.prompt);
    }
}

#[test]
fn every_action_is_valid_json() {
    let (train, held_out) = household::pairs(1);
    for pair in train.iter().chain(&held_out) {
        let value: serde_json::Value = serde_json::from_str(&pair.response).expect("valid JSON");
        assert!(value.is_array() || value["do"].is_string(), "{}", pair.response);
    }
}
