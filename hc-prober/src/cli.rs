//! The command line.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU8,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use hc_prober::{
    Check, CheckKey, Kind, OuterSource, Settings, Timing,
    config::{MAX_PAYLOAD, from_hex},
    named::{Named, Query, QueryType},
};

/// Health checks that take the path of the traffic: through the tunnel to the real, answered from the VIP.
#[derive(Debug, Parser)]
#[command(name = "hc-prober", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check one real once, or a number of times, and say what was found by the exit code.
    #[command(
        after_help = "Exit codes: nagios 0 up, 2 down, 3 unknown or could not run; keepalived (MISC_CHECK) 0 up, unknown \
                      or could not run, 1 down. With several checks, down if any failed. Usage errors: 3, whichever \
                      codes are chosen: try the command line by hand before keepalived runs it."
    )]
    Check(CheckArgs),
    /// Find out why a real is down, or what is wrong although it is up, and what mends it.
    #[command(
        after_help = "Exit codes: 0 nothing is wrong, 2 something is, 3 could not be found out (usage errors too)."
    )]
    Diagnose(DiagnoseArgs),
    /// Check all the time what a file says, beside any load balancer, and tell each change.
    #[command(
        after_help = "Each change of a real is a line of JSON on standard output, and runs the file's command, if it has \
                      one. SIGHUP reads the file again; a bad one changes nothing. SIGTERM ends it: exit code 0. 3: it \
                      could not start, or has no command and nobody reads its lines any more."
    )]
    Run(RunArgs),
}

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The file: which VIPs and reals, which checks, whom to tell. docs/sidecar.md documents it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only read the file and say what is wrong with it.
    #[arg(long)]
    pub(crate) test: bool,
}

/// What to diagnose.
#[derive(Debug, Args)]
pub(crate) struct DiagnoseArgs {
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    /// The check has passed before: silence then points to `rp_filter` or a filter.
    #[arg(long)]
    pub(crate) decap_worked: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    /// Number of checks.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,
    /// Checks a second; 0: as fast as possible.
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate: u32,
    /// Write the last 10,000 packets that were sent and received to this file, as pcapng, each with a comment that says what
    /// it was to the prober.
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// Whose exit codes to use.
    #[arg(long, value_enum, default_value_t = ExitCodes::Nagios)]
    pub(crate) exit_codes: ExitCodes,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// A check, and the way to it.
#[derive(Debug, Args)]
pub(crate) struct SubjectArgs {
    /// The real: where the tunnel ends. IPv4 or IPv6.
    #[arg(long, value_name = "ADDRESS")]
    real: IpAddr,
    /// The VIP: the inner destination. IPv4, or IPv6 if the real's address is.
    #[arg(long, value_name = "ADDRESS")]
    vip: IpAddr,
    #[command(flatten)]
    kind: KindArgs,
    /// Payload of the UDP probe, 1 to 512 bytes, hexadecimal [default: eight unpredictable bytes].
    #[arg(long, value_name = "HEX", conflicts_with_all = ["icmp", "tcp"], value_parser = hex)]
    payload: Option<Hex>,
    /// The same as text, byte for byte.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["icmp", "tcp", "payload"], value_parser = text)]
    payload_text: Option<String>,
    /// How a right UDP reply begins, hexadecimal [default: any reply is right].
    #[arg(long, value_name = "HEX", conflicts_with_all = ["icmp", "tcp"], value_parser = hex)]
    expect: Option<Hex>,
    /// The same as text, byte for byte.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["icmp", "tcp", "expect"], value_parser = text)]
    expect_text: Option<String>,
    /// UDP: silence means down. Otherwise an echo request alongside decides.
    #[arg(long, conflicts_with_all = ["icmp", "tcp"])]
    require_reply: bool,
    /// UDP in the service's own language: a right reply is up, silence and every other reply down.
    #[arg(long, value_enum, conflicts_with_all = ["icmp", "tcp", "payload", "payload_text", "expect", "expect_text",
          "require_reply"])]
    probe: Option<Probe>,
    /// The name that `--probe dns` asks for; that it does not exist is a right answer too.
    #[arg(long, value_name = "NAME", requires = "probe")]
    query: Option<String>,
    /// The type of record that `--probe dns` asks for [default: A].
    #[arg(long, value_name = "TYPE", requires = "query")]
    query_type: Option<QueryType>,
    /// TTL or hop limit of the inner packet: 1 reaches a VIP that the real itself has, one more each router behind it.
    #[arg(long, value_name = "N", default_value = "1")]
    hops: NonZeroU8,
    /// Source of the outer and the inner header, or an IPv4 prefix from which the outer header takes its source, another one
    /// each check; once for each family that the headers have [default: what the route to the real prefers; of an IPv4
    /// header within IPv6: what the route to the VIP prefers].
    #[arg(long, value_name = "ADDRESS|PREFIX", action = ArgAction::Append)]
    source: Vec<Source>,
    /// Capture replies on this interface; may be given several times [default: the one that leads to the real].
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    interface: Vec<String>,
    /// How long an answer is awaited.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct KindArgs {
    /// Send an ICMP echo request.
    #[arg(long)]
    icmp: bool,
    /// Send a TCP SYN to this port.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tcp: Option<u16>,
    /// Send a UDP datagram to this port.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    udp: Option<u16>,
}

/// A service whose language the prober speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Probe {
    /// A query; every answer to it is right, SERVFAIL, REFUSED and the like are none.
    Dns,
    /// A client's request; right is the time, from a server that has it.
    Ntp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExitCodes {
    Nagios,
    Keepalived,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// What the exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Up,
    Down,
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::Unknown => "UNKNOWN",
        })
    }
}

impl ExitCodes {
    pub(crate) fn code(self, exit: Exit) -> ExitCode {
        ExitCode::from(match (self, exit) {
            // Under keepalived, what could not be checked must not be taken out.
            (Self::Nagios | Self::Keepalived, Exit::Up) | (Self::Keepalived, Exit::Unknown) => 0,
            (Self::Nagios, Exit::Down) => 2,
            (Self::Nagios, Exit::Unknown) => 3,
            (Self::Keepalived, Exit::Down) => 1,
        })
    }
}

impl SubjectArgs {
    /// The check that was asked for.
    pub(crate) fn check(&self) -> Result<Check, &'static str> {
        let bytes = |hex: &Option<Hex>, text: &Option<String>| {
            hex.clone().map(|Hex(bytes)| bytes).or_else(|| text.clone().map(String::into_bytes))
        };
        let kind = match (self.kind.icmp, self.kind.tcp, self.kind.udp) {
            (true, _, _) => Kind::Icmp,
            (_, Some(port), _) => Kind::Tcp { port },
            (_, _, Some(port)) if let Some(probe) = self.probe => Kind::Named { port, probe: self.named(probe)? },
            (_, _, Some(port)) => Kind::Udp {
                port,
                payload: bytes(&self.payload, &self.payload_text).unwrap_or_default(),
                expect: bytes(&self.expect, &self.expect_text),
                require_reply: self.require_reply,
            },
            (false, None, None) => return Err("one of --icmp, --tcp and --udp is needed"),
        };
        let key = CheckKey { real: self.real, target: self.vip, hops: self.hops, kind };
        Ok(Check { key, timing: Timing { timeout: self.timeout, ..Timing::default() } })
    }

    fn named(&self, probe: Probe) -> Result<Named, &'static str> {
        match (probe, &self.query) {
            (Probe::Dns, Some(name)) => Query::new(name, self.query_type.unwrap_or_default())
                .map(Named::Dns)
                .ok_or("--query: not a domain name"),
            (Probe::Dns, None) => Err("--probe dns needs --query: the name to ask for"),
            (Probe::Ntp, None) => Ok(Named::Ntp),
            (Probe::Ntp, Some(_)) => Err("--query belongs to --probe dns"),
        }
    }

    /// How to go about it.
    pub(crate) fn settings(&self) -> Result<Settings, Box<dyn std::error::Error>> {
        let mut settings = Settings::new(self.interface.clone())?;
        for source in &self.source {
            let is_second = match *source {
                Source::V4(source) => settings.outer_source.replace(source).is_some(),
                Source::V6(source) => settings.outer_source6.replace(source).is_some(),
            };
            if is_second {
                return Err("--source: allowed is one of each address family".into());
            }
        }
        Ok(settings)
    }
}

impl CheckArgs {
    /// From one check to the next.
    pub(crate) fn pace(&self) -> Duration {
        Duration::from_secs(1).checked_div(self.rate).unwrap_or_default()
    }
}

/// Source of the headers of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    V4(OuterSource),
    V6(Ipv6Addr),
}

impl FromStr for Source {
    type Err = <OuterSource as FromStr>::Err;

    /// What is no IPv6 address is to be IPv4, so that the error tells what is allowed there.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::V6).or_else(|_| text.parse().map(Self::V4))
    }
}

/// Bytes given in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hex(Vec<u8>);

fn hex(text: &str) -> Result<Hex, String> {
    let bytes = from_hex(text).ok_or("only pairs of the digits 0-9 and a-f are allowed")?;
    of_allowed_length(bytes.len()).map(|()| Hex(bytes))
}

fn text(text: &str) -> Result<String, String> {
    of_allowed_length(text.len()).map(|()| text.to_owned())
}

/// As in the configuration file.
fn of_allowed_length(bytes: usize) -> Result<(), String> {
    let allowed = 1..=MAX_PAYLOAD;
    if allowed.contains(&bytes) { Ok(()) } else { Err(format!("{bytes} bytes: allowed is 1 to {MAX_PAYLOAD}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &[&str]) -> Result<CheckArgs, clap::Error> {
        let base = ["hc-prober", "check", "--real", "198.18.101.10", "--vip", "198.19.10.1"];
        match Cli::try_parse_from(base.iter().chain(extra))?.command {
            Command::Check(args) => Ok(args),
            Command::Diagnose(_) | Command::Run(_) => unreachable!("another command"),
        }
    }

    #[test]
    fn kind_missing_or_twice_is_refused() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--icmp", "--tcp", "80"]).is_err());
        assert!(parse(&["--tcp", "0"]).is_err());
        assert!(parse(&["--tcp", "80", "--expect", "00"]).is_err());
    }

    #[test]
    fn udp_with_hex_is_understood() {
        let args = parse(&["--udp", "53", "--payload", "00fF", "--require-reply"]).unwrap();
        let kind = Kind::Udp { port: 53, payload: vec![0, 255], expect: None, require_reply: true };
        assert_eq!(args.subject.check().unwrap().key.kind, kind);
        assert!(parse(&["--udp", "53", "--payload", "0"]).is_err());
        assert!(parse(&["--udp", "53", "--payload", "0g"]).is_err());
        for (option, unit) in [("--payload", "00"), ("--payload-text", "a"), ("--expect", "00"), ("--expect-text", "a")]
        {
            let of_length = |bytes| parse(&["--udp", "53", option, &unit.repeat(bytes)]).map(drop);
            assert!(of_length(MAX_PAYLOAD).is_ok(), "{option}");
            for bytes in [0, MAX_PAYLOAD + 1] {
                let error = of_length(bytes).unwrap_err().to_string();
                assert!(error.contains(&format!("{bytes} bytes: allowed is 1 to 512")), "{option}: {error}");
            }
        }
    }

    #[test]
    fn udp_with_text_or_a_named_probe_is_understood() {
        let kind = |extra: &[&str]| {
            let words: Vec<_> = ["--udp", "53"].iter().chain(extra).copied().collect();
            parse(&words).map_err(|error| error.to_string()).and_then(|args| Ok(args.subject.check()?.key.kind))
        };
        let (payload, expect) = (b"ping".to_vec(), Some(b"pong".to_vec()));
        let text = Kind::Udp { port: 53, payload, expect, require_reply: false };
        assert_eq!(kind(&["--payload-text", "ping", "--expect-text", "pong"]), Ok(text));
        let query = Query::new("example.org", QueryType::Soa).unwrap();
        let dns = Kind::Named { port: 53, probe: Named::Dns(query) };
        assert_eq!(kind(&["--probe", "dns", "--query", "example.org", "--query-type", "soa"]), Ok(dns));
        assert_eq!(kind(&["--probe", "ntp"]), Ok(Kind::Named { port: 53, probe: Named::Ntp }));
        for refused in [
            &["--probe", "dns"][..],
            &["--probe", "dns", "--query", "a..b"],
            &["--probe", "dns", "--query", "a", "--query-type", "ANY"],
            &["--probe", "ntp", "--query", "a"],
            &["--probe", "ntp", "--require-reply"],
            &["--query", "a"],
            &["--payload", "00", "--payload-text", "a"],
        ] {
            assert!(kind(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn hops_are_one_unless_given() {
        let hops = |extra: &[&str]| parse(extra).map(|args| args.subject.check().unwrap().key.hops.get());
        assert_eq!(hops(&["--icmp"]).unwrap(), 1);
        assert_eq!(hops(&["--icmp", "--hops", "255"]).unwrap(), 255);
        assert!(hops(&["--icmp", "--hops", "0"]).is_err() && hops(&["--icmp", "--hops", "256"]).is_err());
    }

    #[test]
    fn source_is_an_address_or_a_prefix() {
        for source in ["198.18.221.11", "198.18.221.0/28"] {
            let args = parse(&["--icmp", "--source", source, "--source", "fd00::11"]).unwrap();
            let settings = args.subject.settings().unwrap();
            assert_eq!(settings.outer_source.unwrap().to_string(), source);
            assert_eq!(settings.outer_source6.unwrap().to_string(), "fd00::11");
        }
        let twice = parse(&["--icmp", "--source", "fd00::11", "--source", "fd00::12"]).unwrap();
        assert!(twice.subject.settings().unwrap_err().to_string().contains("one of each address family"));
        let refused = parse(&["--icmp", "--source", "198.18.221.1/28"]).unwrap_err().to_string();
        assert!(refused.contains("host bits set: allowed is"), "{refused}");
    }

    #[test]
    fn keepalived_unknown_does_not_take_a_real_out() {
        assert_eq!(ExitCodes::Keepalived.code(Exit::Unknown), ExitCode::from(0));
        assert_eq!(ExitCodes::Keepalived.code(Exit::Down), ExitCode::from(1));
        assert_eq!(ExitCodes::Nagios.code(Exit::Unknown), ExitCode::from(3));
    }
}
