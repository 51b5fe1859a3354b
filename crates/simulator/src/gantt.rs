//! Who computes, waits and sends, as an SVG Gantt chart: the whole run, a few steps of the fill epoch, a few from the cache.
//!
//! The whole run is too long for single jobs: each column shows by heights what part of it went into what. Colours and text
//! stand out on white and on black.

use crate::meter::{Span, State};
use crate::world::World;
use barycenter_core::coordinator::RunProgress;
use barycenter_core::io::{Micros, SECOND};
use std::fmt::Write;

const WIDTH: f64 = 1100.0;
const LABELS: f64 = 170.0;
const ROW: f64 = 22.0;
const BAR: f64 = 16.0;
/// Columns of the chart of the whole run.
const COLUMNS: usize = 300;
/// Steps shown one by one.
const STEPS: u32 = 2;

const STATES: [(State, &str, &str); 4] =
    [(State::Compute, "computes", "#3f7fd9"), (State::Prepare, "gets ready, downloads", "#2a9d8f"), (State::Send, "only sends", "#e0861a"), (State::Wait, "waits for others", "#b9bec6")];

/// Draws what the world has seen so far.
pub fn gantt(world: &World, title: &str) -> String {
    let mut windows = vec![("The whole run".to_owned(), 0, world.now, false)];
    let steps: Vec<_> = world.progress.iter().filter_map(|(at, p)| if let RunProgress::Step(s) = p { Some((*at, s.epoch, s.step)) } else { None }).collect();
    for (name, wanted) in [("the fill epoch", 0), ("an epoch from the cache", 1)] {
        let of_epoch: Vec<_> = steps.iter().filter(|s| s.1 == wanted).collect();
        let middle = of_epoch.len() / 2;
        if let (Some(before), Some(last)) = (middle.checked_sub(1).map(|i| of_epoch[i]), of_epoch.get((middle + STEPS as usize).saturating_sub(1))) {
            windows.push((format!("Steps {} to {} of {name}", before.2 + 1, last.2), before.0, last.0, true));
        }
    }
    let panel = 54.0 + ROW * world.devices() as f64;
    let height = 62.0 + panel * windows.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#7a808a\">\n<text x=\"12\" y=\"22\" font-size=\"16\" font-weight=\"600\">{}</text>\n",
        escape(title)
    );
    let mut x = 12.0;
    for (_, label, colour) in STATES {
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"34\" width=\"14\" height=\"14\" rx=\"2\" fill=\"{colour}\"/><text x=\"{}\" y=\"46\">{label}</text>", x + 20.0);
        x += 34.0 + 7.2 * label.len() as f64;
    }
    let _ = writeln!(svg, "<line x1=\"{x}\" x2=\"{}\" y1=\"41\" y2=\"41\" stroke=\"#7a808a\" stroke-opacity=\"0.5\"/><text x=\"{}\" y=\"46\">is there, without a part</text>", x + 20.0, x + 26.0);
    for (i, (name, from, to, exact)) in windows.iter().enumerate() {
        draw_panel(&mut svg, world, 62.0 + panel * i as f64, name, (*from, *to), *exact);
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, world: &World, top: f64, name: &str, (from, to): (Micros, Micros), exact: bool) {
    let length = (to - from).max(1) as f64;
    let width = WIDTH - LABELS - 20.0;
    let x = |at: Micros| LABELS + (at.clamp(from, to) - from) as f64 / length * width;
    let _ = writeln!(svg, "<text x=\"12\" y=\"{}\" font-weight=\"600\">{name}</text>", top + 16.0);
    let rows = top + 26.0;
    let bottom = rows + ROW * world.devices() as f64;
    let step = tick(length / SECOND as f64);
    for i in 0..=(length / SECOND as f64 / step) as u32 {
        let at = LABELS + f64::from(i) * step * SECOND as f64 / length * width;
        let label = if step >= 1.0 { format!("{:.0} s", f64::from(i) * step) } else { format!("{:.0} ms", f64::from(i) * step * 1000.0) };
        let _ = writeln!(svg, "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{rows:.1}\" y2=\"{bottom:.1}\" stroke=\"#7a808a\" stroke-opacity=\"0.2\"/><text x=\"{at:.1}\" y=\"{:.1}\" font-size=\"10\" text-anchor=\"middle\">{label}</text>", bottom + 13.0);
    }
    for device in 0..world.devices() {
        let y = rows + ROW * device as f64;
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LABELS - 8.0, y + 13.0, escape(&world.spec(device).name));
        let timeline = world.meter.timeline(device, world.now);
        let seen: Vec<&Span> = timeline.iter().filter(|s| s.to > from && s.from < to).collect();
        for span in seen.iter().filter(|s| s.state == State::Rest) {
            let _ = writeln!(svg, "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#7a808a\" stroke-opacity=\"0.5\"/>", x(span.from), x(span.to), y + BAR / 2.0, y + BAR / 2.0);
        }
        let paths = if exact { exact_paths(&seen, x, y) } else { column_paths(&seen, from, to, width, y) };
        for (path, (_, _, colour)) in paths.iter().zip(STATES).filter(|(p, _)| !p.is_empty()) {
            let _ = writeln!(svg, "<path fill=\"{colour}\" d=\"{path}\"/>");
        }
    }
}

/// Every span as a rectangle.
fn exact_paths(spans: &[&Span], x: impl Fn(Micros) -> f64, y: f64) -> [String; 4] {
    STATES.map(|(state, ..)| {
        let of_state = spans.iter().filter(|s| s.state == state);
        of_state.fold(String::new(), |path, s| {
            let (left, right) = (x(s.from), x(s.to));
            path + &format!("M{left:.1} {y:.1}h{:.1}v{BAR}H{left:.1}z", (right - left).max(0.2))
        })
    })
}

/// For every column the parts of the time in each state, on top of each other.
fn column_paths(spans: &[&Span], from: Micros, to: Micros, width: f64, y: f64) -> [String; 4] {
    let column = (to - from) as f64 / COLUMNS as f64;
    let mut parts = vec![[0.0; 4]; COLUMNS];
    for span in spans {
        let Some(state) = STATES.iter().position(|(s, ..)| *s == span.state) else { continue };
        let (start, end) = ((span.from.max(from) - from) as f64 / column, (span.to.min(to) - from) as f64 / column);
        for (i, part) in parts.iter_mut().enumerate().take(end.ceil() as usize).skip(start as usize) {
            part[state] += (end.min(i as f64 + 1.0) - start.max(i as f64)).max(0.0);
        }
    }
    let mut paths: [String; 4] = Default::default();
    let step = width / COLUMNS as f64;
    for (i, part) in parts.iter().enumerate() {
        let mut base = y + BAR;
        for (path, share) in paths.iter_mut().zip(part) {
            let height = share * BAR;
            if height >= 0.1 {
                let _ = write!(path, "M{:.1} {base:.1}h{step:.1}v-{height:.1}h-{step:.1}z", LABELS + i as f64 * step);
            }
            base -= height;
        }
    }
    paths
}

/// A round distance of ticks, seconds: about eight over the length.
fn tick(length: f64) -> f64 {
    let rough = length / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|t| *t >= rough).unwrap_or(power)
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(tick(8.0), 1.0);
        assert_eq!(tick(100.0), 20.0);
        assert_eq!(tick(0.3), 0.05);
    }

    #[test]
    fn a_column_is_divided_as_its_time_was() {
        let spans = [Span { from: 0, to: 300, state: State::Compute }, Span { from: 300, to: 600, state: State::Wait }];
        let paths = column_paths(&spans.iter().collect::<Vec<_>>(), 0, 600, 300.0, 0.0);
        assert_eq!(paths[0].matches('M').count(), 150);
        assert_eq!(paths[3].matches('M').count(), 150);
        assert!(paths[1].is_empty() && paths[2].is_empty());
    }
}
