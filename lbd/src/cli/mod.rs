//! `lbctl`: a question over the socket, its answer as a table for people or as JSON for programs.

pub mod client;
mod drain;
mod evidence;
pub mod render;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use crate::model::{
    Admin, AdminOrder, HistoryQuestion, NodeOrder, NodeState, RealChoice, RealRow, TraceQuestion, VipDetail, VipRow,
};
use client::{Client, ClientError};
use render::Style;

/// Where `lbd` listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lbd/lbd.sock";

/// Ask a running lbd, the XDP load balancer.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version, after_help = "Exit status: 0 done, 1 lbd refused or could not be asked, 2 usage.")]
pub struct Cli {
    /// The socket lbd listens on
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// A table for people, or JSON, whose fields are a stable contract
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the daemon as a whole: configuration, devices, prober, VIPs and rings
    Status,
    /// Virtual services
    #[command(subcommand)]
    Vip(VipCommand),
    /// The servers behind them
    #[command(subcommand)]
    Real(RealCommand),
    /// This node as a whole
    #[command(subcommand)]
    Node(NodeCommand),
    /// Show the data plane's counters
    Stats,
    /// Have lbd read its configuration again, and show what that changed
    Reload,
}

#[derive(Debug, Subcommand)]
enum VipCommand {
    /// List the VIPs, and whether each is able to serve
    List,
    /// Show a VIP with its reals: whether it is able to serve, why not, and how many reals must (`min_healthy`)
    Show(WhichVip),
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Announce the VIPs that can serve, at once
    ///
    /// Those with `announce = ["arp"]` are announced only if this was said since the host started.
    Active(NodeArgs),
    /// Announce no VIP; packets that come all the same are forwarded
    ///
    /// Holds over reloads and restarts of lbd until `active`. When this returns, the routes are gone from this host's table;
    /// routers take their time.
    Standby(NodeArgs),
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// Why, for whoever looks at it later; one line of at most 200 characters
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Subcommand)]
enum RealCommand {
    /// List the reals of every VIP, with what their checks say
    List(RealFilter),
    /// Have lbd ask a real what is wrong with it, and show the code, the evidence and the command that mends it
    ///
    /// One answer for each VIP that has the real. Codes: docs/prober.md.
    Why(WhichReal),
    /// Send a real no new flows and let those that it has finish
    ///
    /// Its health is still checked and shown. Holds over reloads and restarts of lbd until `enable`, or for as long as
    /// --for says; said again, what is not said anew stays. With UDP nothing tells a new flow from one that was silent: for `flow_idle` some new ones still go to it.
    Drain(DrainArgs),
    /// Take a real out at once: flows that it has are cut off or go to others
    ///
    /// Its health is still checked and shown. Holds over reloads and restarts of lbd until `enable`, or for as long as
    /// --for says.
    Disable(OrderArgs),
    /// End what `drain` or `disable` began: the real takes new flows again when its checks pass
    Enable(WhichReal),
    /// Show all that is known of a real: its checks, their round-trip times, and why it is down
    Show(WhichReal),
    /// Show what became of reals: each change of their checks, with the reason and what was found out about it
    ///
    /// The last 32 changes of each check, oldest first; also across reloads and restarts.
    History(HistoryFilter),
    /// Write the last packets of a real's checks to a file, each with a comment that says what it was to the prober
    ///
    /// A check is traced by itself from its first failure until it has passed three times in a row: so a real that is down,
    /// or was lately, has packets to show. Others are traced while this command waits. The file is pcapng, for Wireshark
    /// and tshark; docs/prober.md tells more.
    Trace(TraceFilter),
}

#[derive(Debug, Args)]
struct OrderArgs {
    #[command(flatten)]
    which: WhichReal,
    /// Why, for whoever looks at it later; one line of at most 200 characters
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Enable it again after this time, such as 90m or 2h; never, if not given
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    span: Option<Duration>,
}

#[derive(Debug, Args)]
struct DrainArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Return when it has no flows left: none was seen for as long as --quiet says
    ///
    /// Flows become visible as they send, so that none at the beginning means nothing. Counted are the flows of all VIPs that
    /// send to this real and are remembered; told apart in steps of 17 s. Exit status 1 if --timeout is over before, or if the
    /// real is enabled meanwhile.
    #[arg(long)]
    wait: bool,
    /// With --wait: for how long no flow must have been seen
    #[arg(long, value_name = "DURATION", value_parser = quiet, default_value = "60s", requires = "wait")]
    quiet: Duration,
    /// With --wait: how long to wait at most; for ever, if not given
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Option<Duration>,
}

fn quiet(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(quiet) if quiet >= Duration::from_secs(1) => Ok(quiet),
        _ => Err("expected a time of at least 1s".to_owned()),
    }
}

#[derive(Debug, Args)]
struct TraceFilter {
    #[command(flatten)]
    filter: WhichReal,
    /// The file
    #[arg(long, value_name = "FILE")]
    pcap: PathBuf,
    /// How long to take packets first, at most 20s; 0s: only those that are there already
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = wait)]
    wait: Duration,
}

impl TraceFilter {
    fn question(&self) -> TraceQuestion {
        let RealChoice { real, vip, port } = self.filter.choice();
        TraceQuestion { real, vip, port, wait_ms: u64::try_from(self.wait.as_millis()).ok() }
    }
}

fn wait(text: &str) -> Result<Duration, String> {
    let most = Duration::from_millis(TraceQuestion::MOST_WAIT_MS);
    match humantime::parse_duration(text) {
        Ok(wait) if wait <= most => Ok(wait),
        _ => Err(format!("allowed is 0s to {}", humantime::format_duration(most))),
    }
}

#[derive(Debug, Args)]
struct HistoryFilter {
    /// Only of this real
    #[arg(value_name = "REAL")]
    real: Option<IpAddr>,
    /// Only as reals of this VIP, or of its port, TCP and UDP (0: the VIP of all ports)
    #[arg(long, value_name = "VIP[:PORT]")]
    vip: Option<VipChoice>,
}

impl HistoryFilter {
    fn question(&self) -> HistoryQuestion {
        let Self { real, vip } = *self;
        HistoryQuestion { real, vip: vip.map(|vip| vip.address), port: vip.and_then(|vip| vip.port) }
    }
}

#[derive(Debug, Args)]
struct RealFilter {
    /// Only the reals of this VIP
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, Args)]
struct WhichReal {
    /// The real
    #[arg(value_name = "REAL")]
    real: IpAddr,
    /// Only as a real of this VIP, or of its port, TCP and UDP (0: the VIP of all ports)
    #[arg(long, value_name = "VIP[:PORT]")]
    vip: Option<VipChoice>,
}

impl WhichReal {
    fn choice(&self) -> RealChoice {
        let Self { real, vip } = *self;
        RealChoice { real, vip: vip.map(|vip| vip.address), port: vip.and_then(|vip| vip.port) }
    }
}

#[derive(Debug, Clone, Copy, Args)]
struct WhichVip {
    /// The VIP, or its port, TCP and UDP (0: the VIP of all ports)
    #[arg(value_name = "VIP[:PORT]")]
    vip: VipChoice,
}

/// A VIP, or all that have its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct VipChoice {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for VipChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse().map(|address| Self { address, port: None });
        let socket = |_| text.parse::<SocketAddr>().map(|both| Self { address: both.ip(), port: Some(both.port()) });
        address.or_else(socket).map_err(|_| "expected ADDRESS, IPV4:PORT or [IPV6]:PORT")
    }
}

/// Does what was asked and prints the answer; 0, or 1 with the reason on standard error.
pub async fn run(cli: Cli) -> ExitCode {
    let style = Style { colour: io::stdout().is_terminal() && !no_color(), now: Timestamp::now() };
    let said = match answer(&cli, style).await {
        Ok(text) => io::stdout().lock().write_all(text.as_bytes()),
        Err(error) => return fail(&error),
    };
    match said {
        // The reader of a pipe may leave early; that is no failure of ours.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error),
        _ => ExitCode::SUCCESS,
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "lbctl: {error}");
    ExitCode::FAILURE
}

/// <https://no-color.org>: set and not empty.
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("there is no such VIP")]
    NoSuchVip,
    #[error("{0} still has flows; it goes on draining")]
    StillDraining(IpAddr),
    #[error("{0} is in service again: it was enabled, or the time it was drained for is over")]
    NotDraining(IpAddr),
}

async fn answer(cli: &Cli, style: Style) -> Result<String, Failure> {
    let client = Client::new(&cli.socket);
    match &cli.command {
        Command::Status => show(cli.output, &client.status().await?, |status| render::status(status, style)),
        Command::Vip(VipCommand::List) => show(cli.output, &client.vips().await?, |rows| render::vips(rows, style)),
        Command::Vip(VipCommand::Show(WhichVip { vip })) => {
            let details = details(*vip, client.vips().await?, &client.reals().await?)?;
            show(cli.output, &details, |details| render::vip_details(details, style))
        }
        Command::Real(RealCommand::List(RealFilter { vip })) => {
            let mut rows = client.reals().await?;
            rows.retain(|row| vip.is_none_or(|vip| row.vip == vip));
            show(cli.output, &rows, |rows| render::reals(rows, style))
        }
        Command::Real(RealCommand::Why(filter)) => {
            show(cli.output, &client.why(filter.choice()).await?, |rows| render::why(rows))
        }
        Command::Real(RealCommand::Drain(DrainArgs { order, wait, quiet, timeout })) => {
            let said = administer(cli.output, &client, order, Admin::Draining, style).await?;
            if !wait {
                return Ok(said);
            }
            let patience = drain::Patience { quiet: *quiet, timeout: *timeout };
            match drain::wait(&client, order.which.choice(), patience).await? {
                drain::End::Drained => Ok(said),
                drain::End::TimedOut => Err(Failure::StillDraining(order.which.real)),
                drain::End::Enabled => Err(Failure::NotDraining(order.which.real)),
            }
        }
        Command::Real(RealCommand::Disable(order)) => {
            administer(cli.output, &client, order, Admin::Disabled, style).await
        }
        Command::Real(RealCommand::Enable(which)) => {
            let order = OrderArgs { which: *which, reason: None, span: None };
            administer(cli.output, &client, &order, Admin::Enabled, style).await
        }
        Command::Real(RealCommand::Show(filter)) => {
            show(cli.output, &client.show(filter.choice()).await?, |details| evidence::show(details, style))
        }
        Command::Real(RealCommand::History(filter)) => {
            show(cli.output, &client.history(filter.question()).await?, |rows| evidence::history(rows, style))
        }
        Command::Real(RealCommand::Trace(filter)) => {
            let (file, path) = (client.trace(filter.question()).await?, filter.pcap.clone());
            std::fs::write(&path, &file).map_err(|source| ClientError::Write { path: path.clone(), source })?;
            show(cli.output, &evidence::Traced::of(path, &file), |traced| format!("{traced}\n"))
        }
        Command::Node(node) => {
            let (state, NodeArgs { reason }) = match node {
                NodeCommand::Active(args) => (NodeState::Active, args),
                NodeCommand::Standby(args) => (NodeState::Standby, args),
            };
            let order = NodeOrder { state, reason: reason.clone() };
            show(cli.output, &client.order_node(&order).await?, |node| render::node(node, style) + "\n")
        }
        Command::Stats => show(cli.output, &client.stats().await?, |stats| render::stats(stats, style)),
        Command::Reload => show(cli.output, &client.reload().await?, render::reload),
    }
}

/// The VIPs that are meant, each with its reals.
fn details(choice: VipChoice, mut rows: Vec<VipRow>, reals: &[RealRow]) -> Result<Vec<VipDetail>, Failure> {
    rows.retain(|row| row.vip == choice.address && choice.port.is_none_or(|port| port == row.port));
    if rows.is_empty() {
        return Err(Failure::NoSuchVip);
    }
    let detail = |row: VipRow| {
        let reals = reals.iter().filter(|real| real.key() == row.key()).cloned().collect();
        VipDetail { row, reals }
    };
    Ok(rows.into_iter().map(detail).collect())
}

async fn administer(
    output: Output,
    client: &Client,
    args: &OrderArgs,
    state: Admin,
    style: Style,
) -> Result<String, Failure> {
    let OrderArgs { which, reason, span } = args;
    // Rounded up: an order is not over before its time.
    let for_s = span.map(|span| span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0)));
    let order = AdminOrder { of: which.choice(), state, reason: reason.clone(), for_s };
    let result = client.administer(&order).await?;
    for warning in &result.warnings {
        let _ = writeln!(io::stderr(), "lbctl: warning: {warning}");
    }
    show(output, &result, |result| render::administered(result, style))
}

fn show<T: Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) -> Result<String, Failure> {
    match output {
        Output::Table => Ok(table(value)),
        Output::Json => Ok(serde_json::to_string_pretty(value).map(|json| json + "\n").map_err(ClientError::Json)?),
    }
}
