//! How checks are written in a configuration: what the files of `hc-prober run` and of `lbd` have in common.
//!
//! ```text
//! text ── toml + serde ──▶ shapes, each value with its place ── Mistakes ──▶ values      (or every mistake, with its line)
//! ```

pub mod check;
mod error;
pub mod value;

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::{Range, RangeInclusive},
    time::Duration,
};

use toml::Spanned;

pub use self::error::{ConfigError, Mistake, read};
use self::value::{Integer, Interfaces, Span};
use crate::settings::OuterSource;

/// The longest payload of a UDP probe, and the longest beginning of a reply to it, in bytes.
pub const MAX_PAYLOAD: usize = 512;
/// `IFNAMSIZ` less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// Collects what is wrong; each method gives `None` exactly when it has added something.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Adds one, about these bytes of the text.
    pub fn add<T>(&mut self, span: Range<usize>, message: impl Into<String>) -> Option<T> {
        self.0.push(Mistake::new(span, message));
        None
    }

    /// All of them.
    #[must_use]
    pub fn into_vec(self) -> Vec<Mistake> {
        self.0
    }

    /// The devices, sorted: at least one, none twice, each a name that a device can have.
    pub fn interfaces(&mut self, names: Spanned<Interfaces>) -> Option<Vec<String>> {
        let span = names.span();
        let mut names = names.into_inner().0;
        names.sort();
        if names.is_empty() {
            return self.add(span, "`interface` is empty: name at least one device");
        }
        if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
            return self.add(span, format!("`interface` names {twice:?} twice"));
        }
        // The kernel's dev_valid_name().
        let wrong = |name: &&String| {
            name.is_empty()
                || name.len() > MAX_INTERFACE_NAME
                || *name == "."
                || *name == ".."
                || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        };
        match names.iter().find(wrong) {
            Some(name) => self.add(
                span,
                format!(
                    "`interface` {name:?} is not a device name: 1 to {MAX_INTERFACE_NAME} bytes, no '/', ':' or blank"
                ),
            ),
            None => Some(names),
        }
    }

    /// An IPv4 address or prefix.
    pub fn outer_source(&mut self, text: &Spanned<String>) -> Option<OuterSource> {
        let value = text.get_ref();
        match value.parse() {
            Ok(source) => Some(source),
            Err(error) => self.add(text.span(), format!("`outer_source` {value:?} {error}")),
        }
    }

    /// One address: the flow label of outer IPv6 headers spreads flows already.
    pub fn outer_source6(&mut self, text: &Spanned<String>) -> Option<Ipv6Addr> {
        let value = text.get_ref();
        match parse_address(text) {
            Some(IpAddr::V6(address)) if is_usable6(address) => Some(address),
            _ => self.add(
                text.span(),
                format!("`outer_source6` {value:?} is not a unicast IPv6 address such as \"fd00:221::11\""),
            ),
        }
    }

    /// An address packets can be sent to and from.
    pub fn address(&mut self, key: &str, text: &Spanned<String>) -> Option<IpAddr> {
        let value = text.get_ref();
        match parse_address(text) {
            Some(address) if is_usable(address) => Some(address),
            Some(_) => {
                let message = format!(
                    "`{key}` {value:?} cannot be used here: allowed is a unicast address that is neither loopback, \
                     link-local nor mapped"
                );
                self.add(text.span(), message)
            }
            None => {
                let message = format!(
                    "`{key}` {value:?} is not an address: allowed is one such as \"198.18.222.11\" or \"fd00:222::11\""
                );
                self.add(text.span(), message)
            }
        }
    }

    /// Whether packets for a VIP can be carried to a real, whose address is written there: IPv6 needs an IPv6 tunnel.
    pub fn carries(&mut self, vip: Option<IpAddr>, real: IpAddr, span: Range<usize>) {
        if let Some(vip @ IpAddr::V6(_)) = vip
            && real.is_ipv4()
        {
            let message = format!(
                "real {real} is IPv4, and its VIP {vip} IPv6: IPv6 travels inside IPv6 only, so its reals have IPv6 addresses"
            );
            self.add::<()>(span, message);
        }
    }

    /// The meaning of a word, one of a few.
    pub fn word<T: Copy>(&mut self, key: &str, text: &Spanned<String>, allowed: &[(&str, T)]) -> Option<T> {
        let value = text.get_ref();
        if let Some((_, meaning)) = allowed.iter().find(|(word, _)| word == value) {
            return Some(*meaning);
        }
        let words: Vec<_> = allowed.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.add(text.span(), format!("`{key}` {value:?} is not known: allowed is {}", words.join(" or ")))
    }

    /// A number within a range.
    pub fn integer<T>(&mut self, key: &str, value: &Spanned<Integer>, allowed: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        let Integer(number) = *value.get_ref();
        match T::try_from(number) {
            Ok(number) if allowed.contains(&number) => Some(number),
            _ => {
                let message =
                    format!("`{key}` {number} is out of range: allowed is {}..={}", allowed.start(), allowed.end());
                self.add(value.span(), message)
            }
        }
    }

    /// A time within a range.
    pub fn duration(
        &mut self,
        key: &str,
        text: &Spanned<Span>,
        allowed: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let value = &text.get_ref().0;
        match humantime::parse_duration(value) {
            Ok(duration) if allowed.contains(&duration) => Some(duration),
            Ok(_) => {
                let [low, high] = [allowed.start(), allowed.end()].map(|bound| humantime::format_duration(*bound));
                self.add(text.span(), format!("`{key}` {value:?} is out of range: allowed is {low} to {high}"))
            }
            Err(_) => {
                let message = format!("`{key}` {value:?} is not a duration such as \"500ms\", \"2s\" or \"15m\"");
                self.add(text.span(), message)
            }
        }
    }

    /// 1 to 512 bytes in hexadecimal digits.
    pub fn bytes(&mut self, key: &str, text: &Spanned<String>) -> Option<Vec<u8>> {
        match from_hex(text.get_ref()) {
            Some(bytes) if (1..=MAX_PAYLOAD).contains(&bytes.len()) => Some(bytes),
            _ => {
                let message =
                    format!("`{key}` {:?} is not 1 to {MAX_PAYLOAD} bytes in hexadecimal digits", text.get_ref());
                self.add(text.span(), message)
            }
        }
    }

    /// 1 to 512 bytes of text.
    pub fn text(&mut self, key: &str, text: &Spanned<String>) -> Option<Vec<u8>> {
        match text.get_ref().as_bytes() {
            bytes if (1..=MAX_PAYLOAD).contains(&bytes.len()) => Some(bytes.to_vec()),
            bytes => {
                let message = format!("`{key}` is a text of {} bytes: allowed is 1 to {MAX_PAYLOAD}", bytes.len());
                self.add(text.span(), message)
            }
        }
    }
}

/// IPv4 link-local addresses can: the device is found by the route.
fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => is_usable6(a),
    }
}

/// A link-local one would need its device beside it.
fn is_usable6(a: Ipv6Addr) -> bool {
    let is_mapped = a.to_ipv4_mapped().is_some();
    !(a.is_unspecified() || a.is_loopback() || a.is_multicast() || a.is_unicast_link_local() || is_mapped)
}

/// A value that may be absent. `Some(None)`: not there; `None`: there, and a mistake.
pub fn optional<V, T>(value: Option<&V>, convert: impl FnOnce(&V) -> Option<T>) -> Option<Option<T>> {
    match value {
        Some(value) => convert(value).map(Some),
        None => Some(None),
    }
}

/// The address that is written there, if it is one.
#[must_use]
pub fn parse_address(text: &Spanned<String>) -> Option<IpAddr> {
    text.get_ref().parse().ok()
}

/// Bytes from hexadecimal digits, two each.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let (pairs, []) = digits.as_deref()?.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
