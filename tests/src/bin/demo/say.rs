//! How the story is printed.

use std::{fmt::Display, process::Command};

/// A new scene.
pub(crate) fn heading(title: impl Display) {
    let title = format!("── {title} ");
    println!("\n{title}{}\n", "─".repeat(100_usize.saturating_sub(title.chars().count())));
}

/// A sentence.
pub(crate) fn line(text: impl Display) {
    println!("  {text}");
}

/// A command as it is typed on a host.
pub(crate) fn typed(host: &str, command: impl Display) {
    println!("  {host}# {command}");
}

/// What a program printed.
pub(crate) fn output(text: &str) {
    for line in text.trim_end().lines() {
        println!("  │ {}", line.trim_end());
    }
}

/// The words of a command, without what makes it run on its host and where its program lies.
pub(crate) fn words(command: &Command) -> String {
    let all = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    let on_host = all.skip_while(|word| word == "nsenter" || word.starts_with("--net="));
    let mut words: Vec<_> = on_host.map(std::borrow::Cow::into_owned).collect();
    if let Some(program) = words.first_mut() {
        *program = program.rsplit('/').next().unwrap_or_default().to_owned();
    }
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell needs it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{word}'") }
}
