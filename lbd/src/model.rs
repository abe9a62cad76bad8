//! The JSON contract of the API, which is also that of `lbctl -o json`: fields are added, never renamed or removed.

mod evidence;
mod node;

use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::evidence::{CheckRow, HistoryQuestion, HistoryRow, RealDetail, RttStats, Severity, TraceQuestion};
pub use self::node::{NodeOrder, NodeRow, NodeState};
use crate::config::{Protocol, VipKey};

/// `GET /v1/status`: the daemon as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// Whether it is in service yet.
    pub phase: Phase,
    /// What the operator has said of the node as a whole.
    #[serde(default)]
    pub node: NodeRow,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// The devices the configuration names.
    pub interfaces: Vec<InterfaceStatus>,
    /// The XDP program; absent until it is loaded.
    pub program: Option<ProgramStatus>,
    /// The prober's own health.
    pub prober: ProberStatus,
    /// One line a VIP.
    pub vips: Vec<VipSummary>,
    /// One ring a VIP.
    pub rings: Vec<RingStatus>,
}

/// Where in its life the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The first round of checks runs, or XDP is being attached.
    Starting,
    /// XDP attached, rings loaded: every check has its first verdict, or has had the time for one.
    Running,
}

/// The configuration in force, and what became of the last attempt to replace it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file it came from.
    pub path: PathBuf,
    /// 1 at start, one more with each successful reload.
    pub revision: u64,
    /// When this revision was loaded.
    pub loaded_at: Timestamp,
    /// Why the last reload was refused; absent when it was not.
    pub last_reload_error: Option<String>,
}

/// One device the load balancer works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// The device's name.
    pub name: String,
    /// How XDP runs on it.
    pub mode: XdpMode,
    /// Whether this daemon has attached its program.
    pub attached: bool,
}

/// Where in the kernel an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// After the driver, on socket buffers: slower.
    Generic,
}

/// The loaded XDP program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// The kernel's id of it.
    pub id: u32,
    /// Instructions the verifier walked through; absent where the kernel does not say.
    pub verified_insns: Option<u32>,
}

/// What the prober has done since the daemon started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProberStatus {
    /// Checks under way, shared ones counted once.
    pub checks: u64,
    /// Probes sent.
    pub sent: u64,
    /// Answers that no probe of ours can have caused: counted, never believed.
    pub forged: u64,
    /// Answers after their timeout: counted, never believed.
    pub late: u64,
    /// How far behind its schedule a probe was sent at most, since the start, in microseconds.
    pub lag_us: u64,
    /// Half of the probes were sent no later than this, in microseconds; the end of a bucket of a histogram, so up to an
    /// eighth more than the truth.
    pub lag_p50_us: u64,
    /// The same of 99 in a hundred.
    pub lag_p99_us: u64,
    /// Probes and resets that could not be sent: faults of this host, never a real's failure.
    pub send_errors: u64,
    /// Whether it does its work. Unless it is running, verdicts are out of date.
    pub state: ProberState,
    /// What keeps it from its work, for people: the interface, the gateway, or what the kernel answers. Null while it runs, and
    /// where nothing is known.
    #[serde(default)]
    pub fault: Option<String>,
}

/// Whether the prober does its work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProberState {
    /// Probes leave, or none is due.
    #[default]
    Running,
    /// Probes have been due for several intervals and none was tried: it hangs, or has far too much to do. The prober's
    /// numbers may then be 0.
    Stalled,
    /// All probes of several intervals failed to leave: a fault of this host.
    NotSending,
    /// Nothing is answered, and the interface to the reals has no link, or the gateway on the way does not answer either:
    /// verdicts stand.
    CutOff,
}

/// Whether a VIP is able to serve its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VipState {
    /// Its first round of checks runs: no packet meets it yet, or only as an earlier daemon left it.
    #[default]
    Starting,
    /// At least `min_healthy` reals serve.
    Serving,
    /// Fewer do, and `all_down` is `keep`: none is taken out on account of its checks, so new flows may go to reals that
    /// are down.
    Kept,
    /// Fewer do, and `all_down` is `withdraw`, or there is nobody to keep: it should get no traffic. New flows that come
    /// all the same go to the reals that serve.
    Unable,
}

impl VipState {
    /// As JSON and tables have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Kept => "kept",
            Self::Unable => "unable",
        }
    }
}

/// A VIP in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipSummary {
    /// Its address.
    pub vip: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port; 0: all.
    pub port: u16,
    /// Reals that are UP.
    pub reals_up: u32,
    /// Reals configured.
    pub reals_total: u32,
    /// Whether it is able to serve.
    #[serde(default)]
    pub state: VipState,
}

/// The ring of a VIP. Equal digests on two nodes: the same ring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RingStatus {
    /// The VIP's address.
    pub vip: IpAddr,
    /// The VIP's protocol.
    pub protocol: Protocol,
    /// The VIP's port; 0: all.
    pub port: u16,
    /// Slots.
    pub size: u32,
    /// Slots that it would have if it were created now. If that is another number, nodes that start afresh answer
    /// otherwise.
    #[serde(default)]
    pub size_wanted: u32,
    /// A hash of the slots, hexadecimal.
    pub digest: String,
    /// What each real has of it.
    pub shares: Vec<RingShare>,
}

/// A real's part of a ring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RingShare {
    /// The real's address.
    pub real: IpAddr,
    /// The fraction of the slots that send new flows to it, 0 to 1.
    pub share: f64,
}

/// `GET /v1/vips`: one VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRow {
    /// Its address.
    pub vip: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port; 0: all.
    pub port: u16,
    /// Reals that are UP.
    pub reals_up: u32,
    /// Reals configured.
    pub reals_total: u32,
    /// Slots of its ring.
    pub ring_size: u32,
    /// Slots that it would have if it were created now; see [`RingStatus::size_wanted`].
    #[serde(default)]
    pub ring_size_wanted: u32,
    /// A hash of the ring's slots, hexadecimal.
    pub digest: String,
    /// Packets that came for it; `reasons` says what became of them.
    pub packets: u64,
    /// Bytes of those packets, from the Ethernet header on.
    pub bytes: u64,
    /// Until when flows are tracked because of a change of the ring; absent in the steady state.
    pub window_open_until: Option<Timestamp>,
    /// Whether it is able to serve.
    #[serde(default)]
    pub state: VipState,
    /// Why it is not, or not yet, for people; null while it is.
    #[serde(default)]
    pub reason: Option<String>,
    /// Reals that serve: they are UP, enabled and of some weight, so that they take new flows.
    #[serde(default)]
    pub reals_serving: u32,
    /// Reals that must (`min_healthy`; a percentage is one of `reals_total`, rounded up).
    #[serde(default)]
    pub min_healthy: u32,
    /// Its clients are served here: packets meet it, and its ring names a real, or one that drains has flows.
    #[serde(default)]
    pub serving: bool,
    /// The host route of its address; null where it is not to be announced.
    #[serde(default)]
    pub route: Option<Route>,
    /// While that is held: when it will be announced if it can serve until then.
    #[serde(default)]
    pub route_held_until: Option<Timestamp>,
    /// Whether who asks for its address by ARP or neighbour solicitation is answered; null where it is not to be.
    #[serde(default)]
    pub answers: Option<bool>,
}

/// `lbctl vip show`: one VIP with its reals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VipDetail {
    /// What `GET /v1/vips` tells.
    #[serde(flatten)]
    pub row: VipRow,
    /// What `GET /v1/reals` tells of its reals.
    pub reals: Vec<RealRow>,
}

/// How it stands with the host route of a VIP's address, which is for all VIPs of that address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// It is in the table.
    Announced,
    /// It can serve; the route comes when packets meet its ring.
    Pending,
    /// It can serve again; the route comes when it has for `hold_down`.
    Held,
    /// It can serve, and the kernel does not take the route: the log says why.
    Refused,
    /// It cannot serve.
    Withdrawn,
    /// It cannot serve, and the kernel does not delete the route: it is still there, the log says why.
    Stays,
}

impl Route {
    /// As JSON and tables have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
            Self::Stays => "stays",
        }
    }
}

/// `GET /v1/reals`: one real of one VIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RealRow {
    /// The VIP's address.
    pub vip: IpAddr,
    /// The VIP's protocol.
    pub protocol: Protocol,
    /// The VIP's port; 0: all.
    pub port: u16,
    /// The real's address.
    pub real: IpAddr,
    /// Its configured weight.
    pub weight: u16,
    /// What the operator wants of it.
    pub admin: Admin,
    /// What the checks say of it.
    pub state: Health,
    /// The code of the result that its state rests on, such as `L4OK`; `NO_INDEX`: the data plane has no place for it;
    /// `HELD_DOWN`: its checks pass, see `held_until`.
    pub reason: String,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// When the last probe was sent; absent before the first.
    pub last_check: Option<Timestamp>,
    /// From probe to answer, in microseconds; absent when the last probe had none.
    pub rtt_us: Option<u64>,
    /// Passes in a row, now.
    pub rise: u32,
    /// Failures in a row, now.
    pub fall: u32,
    /// The fraction of the ring's slots that send new flows to it, 0 to 1.
    pub share: f64,
    /// The largest packet that gets there whole, in bytes from the outer IP header on: the device's MTU, the route's, or
    /// what a router on the way has told in the last ten minutes. Null while the next hop is not known.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Why it is down: the code of what was found out last, such as `VIP_NOT_LOCAL`. Absent while it is not DOWN, and until
    /// that is known.
    #[serde(default)]
    pub why: Option<String>,
    /// Why the operator has drained or disabled it; null while it is enabled, and where no reason was given.
    #[serde(default)]
    pub admin_reason: Option<String>,
    /// Since when; null while it is enabled.
    #[serde(default)]
    pub admin_since: Option<Timestamp>,
    /// When it is enabled again by itself; null if never.
    #[serde(default)]
    pub admin_until: Option<Timestamp>,
    /// How often it went from UP to DOWN within `flap_window`, up to 132 times; since this lbd started.
    #[serde(default)]
    pub flaps: u32,
    /// The same, however long ago.
    #[serde(default)]
    pub flaps_total: u64,
    /// Its checks pass, and until then it is DOWN all the same (`HELD_DOWN`), since it fell too often; null: it is not held.
    #[serde(default)]
    pub held_until: Option<Timestamp>,
    /// It has begun to take new flows and starts slowly: so many percent of its part of the ring are its own; null: all are.
    #[serde(default)]
    pub ramp_percent: Option<u8>,
    /// When all are; null: they are.
    #[serde(default)]
    pub ramp_until: Option<Timestamp>,
}

/// Which real, and of which VIPs; also the question of `GET /v1/reals/why?real=…` and `GET /v1/reals/show?real=…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RealChoice {
    /// The real's address.
    pub real: IpAddr,
    /// The VIP's address; absent: any.
    pub vip: Option<IpAddr>,
    /// The VIP's port; absent: any.
    pub port: Option<u16>,
}

/// `GET /v1/reals/why`: what is wrong with one real of one VIP, by asking it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyRow {
    /// The VIP's address.
    pub vip: IpAddr,
    /// The VIP's protocol.
    pub protocol: Protocol,
    /// The VIP's port; 0: all.
    pub port: u16,
    /// The real's address.
    pub real: IpAddr,
    /// What the checks said of it when it was asked.
    pub state: Health,
    /// What was found out.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What was found out about a check by asking its real.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is wrong, such as `VIP_NOT_LOCAL`; `OK`: nothing.
    pub code: String,
    /// What that means, for people.
    pub text: String,
    /// What was asked and what came of it, a line each, for people.
    pub evidence: Vec<String>,
    /// The command that mends it, or shows what is to be mended; absent where there is none.
    pub mend: Option<String>,
    /// When it was found out.
    pub at: Timestamp,
}

/// The administrative state of a real.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// In service as far as the operator is concerned.
    #[default]
    Enabled,
    /// No new flows; established ones finish.
    Draining,
    /// Out of service.
    Disabled,
}

impl Admin {
    /// As JSON and tables have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
        }
    }
}

/// The order of `POST /v1/reals/admin`: what the operator says of a real, as that of the VIPs that are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminOrder {
    /// Which real, of which VIPs.
    pub of: RealChoice,
    /// What it is to be.
    pub state: Admin,
    /// Why, for whoever looks at it later: one line of at most 200 characters.
    #[serde(default)]
    pub reason: Option<String>,
    /// After so many seconds it is enabled again by itself.
    #[serde(default)]
    pub for_s: Option<u64>,
}

/// The answer of `POST /v1/reals/admin`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdminResult {
    /// The reals that were meant, as they are now.
    pub reals: Vec<RealRow>,
    /// What the operator may not have meant, for people.
    pub warnings: Vec<String>,
}

/// The question of `GET /v1/reals/flows?real=…&recent_s=…&since_s=…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowsQuestion {
    /// The real's address.
    pub real: IpAddr,
    /// The VIP's address; absent: any.
    pub vip: Option<IpAddr>,
    /// The VIP's port; absent: any.
    pub port: Option<u16>,
    /// How long ago flows sent at most that count as recent, in seconds; told apart in steps of 17 s, in favour of too many.
    pub recent_s: u16,
    /// The same of all flows that are asked for.
    pub since_s: u16,
}

/// `GET /v1/reals/flows`: how many remembered flows go to a real, of whichever VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsAnswer {
    /// Those that have sent within `recent_s`.
    pub recent: u64,
    /// Those that have sent within `since_s`.
    pub since: u64,
    /// It takes no new flows of the VIPs that are meant: the operator has said so, and packets meet that.
    pub is_out: bool,
}

/// The health of a real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Health {
    /// No verdict yet.
    Init,
    /// `rise` checks in a row passed.
    Up,
    /// `fall` checks in a row failed.
    Down,
}

/// `GET /v1/stats`: the data plane's counters, which outlive the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// One a VIP.
    pub vips: Vec<VipStats>,
    /// One a real of a VIP.
    pub reals: Vec<RealStats>,
    /// One a verdict reason of the XDP program.
    pub reasons: Vec<ReasonStats>,
    /// The table of tracked flows.
    pub tracked: TrackedStats,
}

/// The counters of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStats {
    /// Its address.
    pub vip: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port; 0: all.
    pub port: u16,
    /// Packets that came for it; `reasons` says what became of them.
    pub packets: u64,
    /// Bytes of those packets, from the Ethernet header on.
    pub bytes: u64,
}

/// The counters of a real. A real of several VIPs has one row: the data plane counts by address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealStats {
    /// Its address.
    pub real: IpAddr,
    /// Packets sent to it.
    pub packets: u64,
    /// Bytes of those packets as they came in, before encapsulation, from the Ethernet header on.
    pub bytes: u64,
    /// TCP SYNs among them.
    pub syns: u64,
    /// Those of them that repeat one that was not answered; an estimate from below.
    pub repeated_syns: u64,
}

/// How many packets ended in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonStats {
    /// What became of them.
    pub verdict: Verdict,
    /// Why, such as `fragment`.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// What the XDP program did with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Sent on to a real, or answered.
    Tx,
    /// Left to the kernel, untouched.
    Pass,
    /// Dropped.
    Drop,
}

/// Look-ups in the table of tracked flows; none happens in the steady state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackedStats {
    /// The flow had a live entry.
    pub hits: u64,
    /// It had none, or a SYN began a new one.
    pub misses: u64,
    /// Flows that were forgotten although they lived, to make room for others.
    #[serde(default)]
    pub evictions: u64,
    /// Flows that were remembered at the last sweep, which is made only while flows may be; absent before the first.
    #[serde(default)]
    pub remembered: Option<u64>,
    /// For how many flows there is room (`tracked_flows`).
    #[serde(default)]
    pub room: u64,
}

/// `POST /v1/reload`, when the new configuration was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadResult {
    /// The revision now in force.
    pub revision: u64,
    /// What changed, one line each; empty when nothing did.
    pub changes: Vec<String>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What failed, for people; may span lines.
    pub error: String,
}

impl VipRow {
    /// The identity of the VIP.
    #[must_use]
    pub fn key(&self) -> VipKey {
        VipKey { address: self.vip, protocol: self.protocol, port: self.port }
    }
}

impl WhyRow {
    /// The identity of the VIP this row belongs to.
    #[must_use]
    pub fn key(&self) -> VipKey {
        VipKey { address: self.vip, protocol: self.protocol, port: self.port }
    }
}

impl RealRow {
    /// The identity of the VIP this row belongs to.
    #[must_use]
    pub fn key(&self) -> VipKey {
        VipKey { address: self.vip, protocol: self.protocol, port: self.port }
    }
}
