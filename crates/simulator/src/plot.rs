//! Charts of growth as SVG: lines of epoch times, and what the time goes into.

use crate::gantt::escape;
use crate::growth::Point;
use crate::report::Spent;
use std::fmt::Write;

const WIDTH: f64 = 1100.0;
const PANEL: (f64, f64) = (440.0, 250.0);
const MARGIN: f64 = 70.0;
const TEXT: &str = "#7a808a";

/// A line of a chart.
pub struct Series<'a> {
    /// For the legend.
    pub name: &'a str,
    /// Colour.
    pub colour: &'a str,
    /// (devices, seconds).
    pub points: Vec<(u32, f64)>,
}

/// A part of a chart.
pub enum Panel<'a> {
    /// Both axes are logarithmic.
    Lines {
        /// Heading.
        title: String,
        /// Lines.
        series: Vec<Series<'a>>,
    },
    /// Bars of parts that add up to one epoch.
    Parts {
        /// Heading.
        title: String,
        /// (devices, what its time went into).
        bars: Vec<(u32, Spent)>,
    },
}

/// Bars of the fill epochs.
pub fn fill_parts(points: &[Point]) -> Vec<(u32, Spent)> {
    points.iter().map(|p| (p.devices, p.fill)).collect()
}

/// Bars of the epochs from the cache.
pub fn train_parts(points: &[Point]) -> Vec<(u32, Spent)> {
    points.iter().map(|p| (p.devices, p.train)).collect()
}

/// Two panels beside each other in every row.
pub fn chart(title: &str, panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(2) as f64;
    let height = 40.0 + rows * (PANEL.1 + 120.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{TEXT}\">\n<text x=\"12\" y=\"24\" font-size=\"16\" font-weight=\"600\">{}</text>\n",
        escape(title)
    );
    for (i, panel) in panels.iter().enumerate() {
        let (left, top) = (MARGIN + (i % 2) as f64 * (WIDTH / 2.0), 80.0 + (i / 2) as f64 * (PANEL.1 + 120.0));
        match panel {
            Panel::Lines { title, series } => lines(&mut svg, left, top, title, series),
            Panel::Parts { title, bars } => parts(&mut svg, left, top, title, bars),
        }
    }
    svg + "</svg>\n"
}

fn heading(svg: &mut String, left: f64, top: f64, title: &str) {
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\" font-weight=\"600\">{}</text>", top - 14.0, escape(title));
}

/// Every other place of the legend in a second column.
fn legend(svg: &mut String, left: f64, top: f64, index: usize, colour: &str, name: &str) {
    let (x, y) = (left + (index % 2) as f64 * 220.0, top + PANEL.1 + 42.0 + (index / 2) as f64 * 17.0);
    let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{colour}\"/><text x=\"{}\" y=\"{y}\">{}</text>", y - 10.0, x + 18.0, escape(name));
}

fn grid_line(svg: &mut String, left: f64, y: f64, label: &str) {
    let _ = writeln!(svg, "<line x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{TEXT}\" stroke-opacity=\"0.25\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left + PANEL.0, left - 8.0, y + 4.0);
}

fn seconds_label(seconds: f64) -> String {
    if seconds >= 1.0 { format!("{seconds:.0} s") } else { format!("{seconds} s") }
}

fn lines(svg: &mut String, left: f64, top: f64, title: &str, series: &[Series]) {
    heading(svg, left, top, title);
    let all = || series.iter().flat_map(|s| s.points.iter());
    let (least, most) = all().fold((f64::INFINITY, 0.0f64), |(l, m), p| (l.min(p.1), m.max(p.1)));
    let (low, high) = (least.max(1e-3).log10().floor(), most.max(1e-2).log10().ceil());
    let last = all().map(|p| p.0).max().unwrap_or(1).max(2);
    let x = |n: u32| left + f64::from(n).log2() / f64::from(last).log2() * PANEL.0;
    let y = |seconds: f64| top + PANEL.1 * (1.0 - (seconds.max(1e-3).log10() - low) / (high - low).max(1.0));
    for power in low as i32..=high as i32 {
        grid_line(svg, left, y(10f64.powi(power)), &seconds_label(10f64.powi(power)));
    }
    for n in (0..8).map(|i| 1 << i).filter(|n| *n <= last) {
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{n}</text>", x(n), top + PANEL.1 + 18.0);
    }
    for (i, s) in series.iter().enumerate() {
        let points: Vec<_> = s.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>", points.join(" "), s.colour);
        for p in &s.points {
            let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"/>", x(p.0), y(p.1), s.colour);
        }
        legend(svg, left, top, i, s.colour, s.name);
    }
}

type Part = (&'static str, &'static str, fn(&Spent) -> f64);
const PARTS: [Part; 5] = [
    ("compute", "#3f7fd9", |s| s.compute),
    ("waiting for the slowest", "#8e6fc9", |s| s.imbalance),
    ("pipeline: bubble, transfers", "#e0861a", |s| s.pipeline),
    ("AllReduce", "#c94f6d", |s| s.all_reduce),
    ("other", "#b9bec6", |s| s.other),
];

fn parts(svg: &mut String, left: f64, top: f64, title: &str, bars: &[(u32, Spent)]) {
    heading(svg, left, top, title);
    let total = |s: &Spent| PARTS.iter().map(|p| p.2(s).max(0.0)).sum::<f64>();
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        grid_line(svg, left, top + PANEL.1 * (1.0 - percent / 100.0), &format!("{percent} %"));
    }
    let step = PANEL.0 / bars.len().max(1) as f64;
    for (i, (devices, spent)) in bars.iter().enumerate() {
        let x = left + step * (i as f64 + 0.15);
        let mut y = top + PANEL.1;
        for (_, colour, part) in PARTS {
            let height = PANEL.1 * part(spent).max(0.0) / total(spent).max(1e-9);
            y -= height;
            let _ = writeln!(svg, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>", step * 0.7);
        }
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{devices}</text>", x + step * 0.35, top + PANEL.1 + 18.0);
    }
    for (i, (name, colour, _)) in PARTS.iter().enumerate() {
        legend(svg, left, top, i, colour, name);
    }
}
