//! The lanes of another build against these.

use std::process::Command;

use crate::compare::median;

const TURNS: usize = 5;

/// Return what a build measures: the name of each case, and its four figures.
fn figures(binary: &str) -> Vec<(String, Vec<f64>)> {
    let output = Command::new(binary).arg("rows").output().expect("the other build can be run");
    let text = String::from_utf8(output.stdout).expect("it prints text");
    let row = |line: &str| {
        let (name, figures) = line.split_once('\t')?;
        Some((name.to_owned(), figures.split('\t').filter_map(|figure| figure.parse().ok()).collect()))
    };
    text.lines().filter_map(row).collect()
}

/// Print old and new for each case, from several turns of both builds.
pub fn against(other: &str) {
    let this = std::env::current_exe().expect("this program has a path");
    let this = this.to_str().expect("its path is text");
    let turns: Vec<_> = (0..TURNS).map(|_| [figures(other), figures(this)]).collect();
    println!(
        "{:>22} | seal: old, new, cycles | open: old, new, cycles (ns and cycles per packet)",
        "packets of bytes"
    );
    for (case, (name, _)) in turns[0][1].iter().enumerate() {
        let of = |build: usize, figure: usize| {
            median(turns.iter().filter_map(|turn| turn[build].get(case)?.1.get(figure).copied()).collect())
        };
        let half = |figure| {
            format!("{:6.0} {:6.0} {:6.0} {:6.0}", of(0, figure), of(1, figure), of(0, figure + 2), of(1, figure + 2))
        };
        println!("{name:>22} | {} | {}", half(0), half(1));
    }
}
