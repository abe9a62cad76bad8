//! Probes in a service's own language: the question, what proves an answer, and which answers are right.

use std::{fmt, str::FromStr};

use serde::Serialize;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE, header_buffer};

use crate::{
    cookie::Cookie,
    finding::{Detail, Finding},
    report::{Reason, Severity},
};

/// A datagram whose content the prober makes and understands. A server always answers it: silence means down.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(tag = "probe", rename_all = "lowercase")]
pub enum Named {
    /// A DNS query (RFC 1035); up on an answer, also on one that says that the name does not exist.
    Dns(Query),
    /// An NTP client request (RFC 5905); up on a reply of a server that has the time.
    Ntp,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(query) => write!(f, "dns {} {}", query.name, query.kind),
            Self::Ntp => f.write_str("ntp"),
        }
    }
}

impl Named {
    /// The datagram's data, with the cookie in it.
    #[must_use]
    pub fn payload(&self, cookie: Cookie) -> Vec<u8> {
        match self {
            Self::Dns(query) => query.message(cookie),
            Self::Ntp => ntp_request(cookie).to_vec(),
        }
    }

    /// Whether only who received the request can have sent this, apart from guessing: 16 bits of DNS, 64 of NTP, and the
    /// source port's. Of a longer answer than the capture hands up the rest is not looked at.
    #[must_use]
    pub fn proves(&self, payload: &[u8], cookie: Cookie) -> bool {
        match self {
            Self::Dns(query) => query.is_answered(payload, cookie),
            Self::Ntp => NtpReply::read(payload).is_some_and(|reply| reply.originate == cookie.bytes()),
        }
    }

    /// What a proven answer means. Whatever is not right is soft: the host and its VIP are there.
    #[must_use]
    pub fn finding(&self, payload: &[u8]) -> Finding {
        let complaint = match self {
            Self::Dns(_) => rcode_complaint(payload),
            Self::Ntp => NtpReply::read(payload).and_then(|reply| reply.complaint()),
        };
        match complaint {
            None => Finding::pass(Reason::L4Ok),
            Some(detail) => Finding::fail(Severity::Soft, Reason::Mismatch, Some(detail)),
        }
    }
}

/// What to ask a DNS server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Query {
    #[serde(rename = "query")]
    name: String,
    #[serde(rename = "type")]
    kind: QueryType,
    /// The message with the id 0.
    #[serde(skip)]
    message: Vec<u8>,
}

/// Length of a DNS header (RFC 1035, 4.1.1), bytes.
const DNS_HEADER: usize = 12;

impl Query {
    /// A recursive query of class IN. `None`: not a domain name of at most 255 bytes in labels of at most 63, in printable
    /// ASCII; the root is `.`.
    #[must_use]
    pub fn new(name: &str, kind: QueryType) -> Option<Self> {
        let relative = name.strip_suffix('.').unwrap_or(name);
        let is_plain = |c: char| c.is_ascii_graphic() && c != '\\';
        let labels = relative.is_empty() || relative.split('.').all(|label| !label.is_empty());
        if name.is_empty() || !labels || !relative.chars().all(is_plain) {
            return None;
        }
        let mut packet = Packet::new_query(0);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let qname = if relative.is_empty() { Name::new_with_labels(&[]) } else { Name::new(relative).ok()? };
        packet.questions.push(Question::new(qname, QTYPE::TYPE(kind.into()), CLASS::IN.into(), false));
        Some(Self { name: name.to_owned(), kind, message: packet.build_bytes_vec().ok()? })
    }

    fn message(&self, cookie: Cookie) -> Vec<u8> {
        let mut message = self.message.clone();
        if let Some(id) = message.first_chunk_mut() {
            *id = dns_id(cookie).to_be_bytes();
        }
        message
    }

    /// RFC 5452, 9.1: a response with our id, about our question, if it repeats one: errors need not.
    fn is_answered(&self, payload: &[u8], cookie: Cookie) -> bool {
        let ours = self.message.get(DNS_HEADER..).unwrap_or_default();
        let same = |theirs: &[u8]| {
            let length = ours.len().min(theirs.len());
            length > 0 && ours.get(..length).zip(theirs.get(..length)).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
        };
        header_buffer::id(payload) == Ok(dns_id(cookie))
            && header_buffer::has_flags(payload, PacketFlag::RESPONSE) == Ok(true)
            && match header_buffer::questions(payload) {
                Ok(0) => rcode_complaint(payload).is_some(),
                Ok(1) => payload.get(DNS_HEADER..).is_some_and(same),
                Ok(_) | Err(_) => false,
            }
    }
}

fn dns_id(cookie: Cookie) -> u16 {
    let [.., a, b] = cookie.bytes();
    u16::from_be_bytes([a, b])
}

/// Only an answer to the question is right: the records, or that there are none.
fn rcode_complaint(payload: &[u8]) -> Option<Detail> {
    match header_buffer::rcode(payload) {
        Ok(RCODE::NoError | RCODE::NameError) => None,
        // The low four bits of the fourth byte (RFC 1035, 4.1.1).
        _ => Some(Detail::Rcode(payload.get(3).copied().unwrap_or_default() & 0x0f)),
    }
}

/// The record types that can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum QueryType {
    /// An IPv4 address.
    #[default]
    A,
    /// An IPv6 address.
    Aaaa,
    /// An alias.
    Cname,
    /// A mail server.
    Mx,
    /// A name server.
    Ns,
    /// A name for an address.
    Ptr,
    /// The start of a zone: what its own server always has.
    Soa,
    /// A service.
    Srv,
    /// Text.
    Txt,
}

impl QueryType {
    /// All of them, by the names they are written with.
    pub const ALL: [(&str, Self); 9] = [
        ("A", Self::A),
        ("AAAA", Self::Aaaa),
        ("CNAME", Self::Cname),
        ("MX", Self::Mx),
        ("NS", Self::Ns),
        ("PTR", Self::Ptr),
        ("SOA", Self::Soa),
        ("SRV", Self::Srv),
        ("TXT", Self::Txt),
    ];
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for QueryType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, kind)| *kind);
        found.ok_or_else(|| format!("allowed is {}", Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

impl From<QueryType> for TYPE {
    fn from(kind: QueryType) -> Self {
        match kind {
            QueryType::A => Self::A,
            QueryType::Aaaa => Self::AAAA,
            QueryType::Cname => Self::CNAME,
            QueryType::Mx => Self::MX,
            QueryType::Ns => Self::NS,
            QueryType::Ptr => Self::PTR,
            QueryType::Soa => Self::SOA,
            QueryType::Srv => Self::SRV,
            QueryType::Txt => Self::TXT,
        }
    }
}

/// Length of an NTP packet without extensions (RFC 5905, 7.3), bytes.
const NTP: usize = 48;

/// Version 4, mode 3, and nothing else but the transmit timestamp, which need not be the time: the server gives it back as
/// it is.
fn ntp_request(cookie: Cookie) -> [u8; NTP] {
    let mut request = [0; NTP];
    request[0] = 0b00_100_011;
    if let Some(transmit) = request.last_chunk_mut() {
        *transmit = cookie.bytes();
    }
    request
}

/// What counts of an NTP server's reply.
struct NtpReply {
    leap: u8,
    stratum: u8,
    /// ASCII, if the stratum is 0.
    reference: [u8; 4],
    originate: [u8; 8],
}

impl NtpReply {
    /// `None`: too short, or not a server's (mode 4).
    fn read(payload: &[u8]) -> Option<Self> {
        let packet: &[u8; NTP] = payload.first_chunk()?;
        let [head, stratum, ..] = *packet;
        let reply = Self {
            leap: head >> 6,
            stratum,
            reference: *packet.get(12..)?.first_chunk()?,
            originate: *packet.get(24..)?.first_chunk()?,
        };
        (head & 0b111 == 4).then_some(reply)
    }

    /// RFC 5905, 7.3 and 7.4: stratum 0 with letters for a reference is a kiss-o'-death; without any, a stratum of 16 or a
    /// leap indicator of 3, the server has no time to give.
    fn complaint(&self) -> Option<Detail> {
        match (self.stratum, self.leap) {
            (0, _) if self.reference.iter().all(u8::is_ascii_alphanumeric) => Some(Detail::Kiss(self.reference)),
            (1..=15, 0..=2) => None,
            _ => Some(Detail::Unsynchronised),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cookie::{Cookies, LaneKey, Protocol},
        ends::Ends,
        state::Event,
    };
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn cookie(epoch: u64) -> Cookie {
        let ends = Ends::V4 { source: Ipv4Addr::new(198, 18, 0, 1), destination: Ipv4Addr::new(198, 19, 10, 1) };
        Cookies::new(&[7; 16]).cookie(&LaneKey { ends, protocol: Protocol::Udp, port: 53 }, 61_000, epoch)
    }

    fn dns(name: &str) -> Named {
        Named::Dns(Query::new(name, QueryType::Soa).unwrap())
    }

    /// The query as a server sends it back, with its header's flags and counts changed.
    fn response(named: &Named, rcode: u8) -> Vec<u8> {
        let mut message = named.payload(cookie(1));
        (message[2], message[3]) = (0x81, 0x80 | rcode);
        message
    }

    #[test]
    fn query_is_these_bytes() {
        let [.., a, b] = cookie(1).bytes();
        #[rustfmt::skip]
        let expected = [
            // id; recursion desired; one question
            a, b, 1, 0,  0, 1, 0, 0,  0, 0, 0, 0,
            // example.org, SOA, IN
            7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 3, b'o', b'r', b'g', 0,  0, 6,  0, 1,
        ];
        assert_eq!(dns("example.org").payload(cookie(1)), expected);
        assert_eq!(dns("example.org.").payload(cookie(1)), expected);
        assert_eq!(dns(".").payload(cookie(1))[DNS_HEADER..], [0, 0, 6, 0, 1]);
    }

    #[test]
    fn name_that_no_query_can_have_is_none() {
        let long = format!("{}.org", "a".repeat(64));
        let longer = ["a".repeat(63).as_str(); 5].join(".");
        for name in ["", "..", "a..b", ".org", "with blank.org", "münchen.de", "a\\.b", &long, &longer] {
            assert_eq!(Query::new(name, QueryType::A), None, "{name:?}");
        }
    }

    #[test]
    fn dns_answer_is_proved_by_id_and_question() {
        let named = dns("example.org");
        let genuine = response(&named, 0);
        assert!(named.proves(&genuine, cookie(1)));
        assert!(!named.proves(&genuine, cookie(2)), "another id");
        assert!(!named.proves(&named.payload(cookie(1)), cookie(1)), "a query, not a response");
        assert!(!dns("example.net").proves(&genuine, cookie(1)), "another question");
        let (head, question) = genuine.split_at(DNS_HEADER);
        assert!(named.proves(&[head, &question.to_ascii_uppercase()].concat(), cookie(1)), "letters of either case");
        assert!(!named.proves(&genuine[..11], cookie(1)), "cut off");
        let mut bare = genuine[..DNS_HEADER].to_vec();
        bare[5] = 0;
        assert!(!named.proves(&bare, cookie(1)), "an answer repeats the question");
        bare[3] |= 2;
        assert!(named.proves(&bare, cookie(1)), "an error need not");
    }

    #[test]
    fn dns_answer_is_right_if_it_answers_the_question() {
        let named = dns("example.org");
        for (rcode, right) in [(0, true), (3, true), (1, false), (2, false), (4, false), (5, false)] {
            let finding = named.finding(&response(&named, rcode));
            assert_eq!(finding.event == Event::Pass, right, "{rcode}");
            assert_eq!(finding.detail, (!right).then_some(Detail::Rcode(rcode)));
        }
    }

    fn ntp_reply(leap: u8, stratum: u8, mode: u8) -> Vec<u8> {
        let mut reply = [0; NTP];
        (reply[0], reply[1]) = (leap << 6 | 4 << 3 | mode, stratum);
        reply[12..16].copy_from_slice(b"RATE");
        reply[24..32].copy_from_slice(&Named::Ntp.payload(cookie(1))[40..]);
        reply.to_vec()
    }

    #[test]
    fn ntp_reply_is_proved_by_its_originate_timestamp() {
        assert!(Named::Ntp.proves(&ntp_reply(0, 2, 4), cookie(1)));
        assert!(!Named::Ntp.proves(&ntp_reply(0, 2, 4), cookie(2)), "another's");
        assert!(!Named::Ntp.proves(&ntp_reply(0, 2, 3), cookie(1)), "a client's");
        assert!(!Named::Ntp.proves(&ntp_reply(0, 2, 4)[..47], cookie(1)), "cut off");
    }

    #[test]
    fn ntp_server_without_the_time_is_not_right() {
        let detail = |leap, stratum| Named::Ntp.finding(&ntp_reply(leap, stratum, 4)).detail;
        assert_eq!((detail(0, 1), detail(2, 15)), (None, None));
        assert_eq!(detail(0, 0), Some(Detail::Kiss(*b"RATE")));
        let mut silent = ntp_reply(3, 0, 4);
        silent[12..16].fill(0);
        let details = [detail(3, 2), detail(0, 16), Named::Ntp.finding(&silent).detail];
        assert_eq!(details, [Some(Detail::Unsynchronised); 3]);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..192)) {
            for named in [dns("example.org"), Named::Ntp] {
                let _ = named.proves(&bytes, cookie(1));
                let _ = named.finding(&bytes);
            }
        }
    }
}
