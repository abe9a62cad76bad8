//! The lab itself: what it promises to the tests that are built on it. Needs root.

use std::{path::Path, process::Command, time::Duration};

use tests::lab::{Body, Error, Host, Lab, LabConfig, Packet, Result, Running, TcpFlags, run, wait_for};

fn lab(test: &str, reals: usize) -> Result<Lab> {
    Lab::up(&config(test, reals))
}

/// A lab with a name that no other test or process uses.
fn config(test: &str, reals: usize) -> LabConfig {
    LabConfig { name: format!("t{}-{test}", std::process::id()), reals }
}

fn root_url(host: &Host) -> String {
    format!("http://{}/", host.addr())
}

fn namespaces_of(name: &str) -> Result<Vec<String>> {
    let all = run(Command::new("ip").args(["netns", "list"]))?;
    Ok(all.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect())
}

#[test]
fn lab_up_client_reaches_every_real_and_down_leaves_nothing() {
    let lab = lab("web", 2).unwrap();
    for real in lab.reals() {
        assert_eq!(lab.client().http_get(&root_url(real)).unwrap(), format!("{}\n", real.name()));
    }
    let pids: Vec<u32> = lab.hosts().flat_map(|host| host.processes().unwrap()).map(|(pid, _)| pid).collect();
    assert_eq!(pids.len(), 4, "a master and a worker on each real");

    let (name, dir) = (lab.name().to_owned(), lab.dir());
    lab.down().unwrap();
    assert_eq!(namespaces_of(&name).unwrap(), Vec::<String>::new());
    assert!(!dir.exists());
    for pid in pids {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(comm.trim() != "nginx" || state.contains(") Z "), "nginx {pid} is still there");
    }
}

#[test]
fn lab_dropped_is_gone_and_lab_kept_is_found_again() {
    let config = config("kept", 1);
    let mut kept = Lab::up(&config).unwrap();
    assert!(matches!(Lab::up(&config), Err(Error::AlreadyUp { .. })));
    kept.keep();
    drop(kept);

    let found = Lab::attach(&config.name).unwrap();
    assert_eq!(found.client().http_get(&root_url(found.real(1).unwrap())).unwrap(), "real1\n");
    assert!(matches!(found.real(2), Err(Error::NoSuchHost { .. })));
    found.down().unwrap();
    assert!(matches!(Lab::attach(&config.name), Err(Error::NotUp(_))));

    drop(Lab::up(&config).unwrap());
    assert_eq!(namespaces_of(&config.name).unwrap(), Vec::<String>::new());
}

#[test]
fn request_to_the_vip_is_routed_to_the_lb() {
    let lab = lab("vip", 1).unwrap();
    let capture = lab.lb().pcap("eth0", "tcp port 80", "vip.pcap").unwrap();
    // Nobody answers yet.
    let mut curl = lab.client().command("curl");
    let curl = curl.args(["--silent", "--noproxy", "*", "--max-time", "10", &format!("http://{}/", lab.vip())]);
    let _curl = Running::start(curl).unwrap();
    let seen = capture.wait_for("a SYN at the LB", Duration::from_secs(5), |packets| !packets.is_empty()).unwrap();
    let syn = seen[0].ip().unwrap();
    assert_eq!((syn.source, syn.destination), (lab.client().addr(), lab.vip()));
    assert!(seen[0].to_string().contains(":80 TCP SYN"), "{}", seen[0]);
    capture.stop().unwrap();
}

#[test]
fn xdp_program_is_attached_to_the_routers_side_of_the_lb() {
    let lab = lab("xdp", 1).unwrap();
    assert!(lab.router().run("ip link show to-lb").unwrap().contains("prog/xdp"));
}

#[test]
fn checksum_of_the_client_is_complete_on_the_wire() {
    let lab = lab("csum", 1).unwrap();
    let real = lab.real(1).unwrap();
    let capture = real.pcap("eth0", "tcp dst port 80", "csum.pcap").unwrap();
    lab.client().http_get(&root_url(real)).unwrap();
    capture.wait_for("a request", Duration::from_secs(5), |packets| packets.len() > 3).unwrap();
    let file = capture.file().to_owned();
    capture.stop().unwrap();
    let shown = run(Command::new("tcpdump").args(["-vv", "-n", "-r"]).arg(file)).unwrap();
    assert!(shown.contains("(correct)") && !shown.contains("incorrect"), "{shown}");
}

#[test]
fn nginx_quit_closes_the_port_and_ends_the_download_it_serves() {
    let lab = lab("quit", 1).unwrap();
    let real = lab.real(1).unwrap();
    let mut download = lab.client().command("curl");
    download.args(["--silent", "--fail", "--noproxy", "*", "--output", "/dev/null"]);
    let mut download = Running::start(download.arg(format!("http://{}/big?rate=128m", real.addr()))).unwrap();
    let established = || real.run("ss --no-header --tcp --numeric state established sport = :80");
    let what = "the download to begin";
    wait_for(what, Duration::from_secs(5), || Ok((!established()?.is_empty()).then_some(()))).unwrap();

    let first = real.nginx().pid().unwrap();
    real.nginx().quit().unwrap();
    let refused = lab.client().http_get(&root_url(real)).unwrap_err().to_string();
    assert!(refused.contains("refuse") || refused.contains("connect to"), "{refused}");

    real.nginx().start().unwrap();
    assert_ne!(real.nginx().pid().unwrap(), first);
    assert_eq!(lab.client().http_get(&root_url(real)).unwrap(), "real1\n");
    assert!(download.wait(Duration::from_secs(20)).unwrap().success(), "the download was cut");
    // The end of the first one took nothing from the second.
    assert!(real.nginx().pid().is_some());
}

#[test]
fn nginx_stop_refuses_with_a_reset() {
    let lab = lab("stop", 1).unwrap();
    let real = lab.real(1).unwrap();
    real.nginx().stop().unwrap();
    let capture = lab.client().pcap("eth0", "tcp src port 80", "stop.pcap").unwrap();
    assert!(lab.client().http_get(&root_url(real)).is_err());
    let reset = |body: &Body| matches!(body, Body::Ip(ip) if ip.tcp_flags().is_some_and(|f| f.has(TcpFlags::RST)));
    let seen = |packets: &[Packet]| packets.iter().any(|packet| reset(&packet.body));
    capture.wait_for("a reset", Duration::from_secs(5), seen).unwrap();
}

#[test]
fn upload_is_received_whole_and_logged() {
    let lab = lab("upload", 1).unwrap();
    let real = lab.real(1).unwrap();
    let file = lab.client().dir().join("upload");
    std::fs::File::create(&file).unwrap().set_len(3_000_000).unwrap();
    let mut curl = lab.client().command("curl");
    curl.args(["--silent", "--fail", "--noproxy", "*", "--data-binary", &format!("@{}", file.display())]);
    let answer = run(curl.arg(format!("http://{}/upload", real.addr()))).unwrap();
    assert_eq!(answer, "real1 received 3000000 bytes\n");
    // nginx logs a request after it has answered it.
    let logged =
        || Ok(std::fs::read_to_string(real.nginx().access_log()).unwrap().contains("POST /upload").then_some(()));
    wait_for("the upload in the access log", Duration::from_secs(5), logged).unwrap();
}

#[test]
fn capture_with_a_wrong_filter_says_what_tcpdump_says() {
    let lab = lab("filter", 1).unwrap();
    let error = lab.client().pcap("eth0", "nonsense here", "x.pcap").unwrap_err().to_string();
    assert!(error.contains("syntax error") || error.contains("unknown"), "{error}");
}

#[test]
fn lab_command_raises_shows_and_takes_down() {
    let name = format!("t{}-cmd", std::process::id());
    let command =
        |arguments: &[&str]| run(Command::new(env!("CARGO_BIN_EXE_lab")).args(["--name", &name]).args(arguments));
    let guard = Down(name.clone());
    command(&["up", "--reals", "1"]).unwrap();
    let status = command(&["status"]).unwrap();
    assert!(status.contains("198.18.101.10") && status.contains("nginx"), "{status}");
    let addresses = command(&["shell", "real1", "ip", "-4", "-brief", "addr", "show", "eth0"]).unwrap();
    assert!(addresses.contains("198.18.101.10/24"), "{addresses}");
    command(&["down"]).unwrap();
    drop(guard);
    assert!(command(&["status"]).unwrap_err().to_string().contains("is not up"));
    assert!(!Path::new("/run/lbd-lab").join(&name).exists());
}

/// Takes the lab of the command down if the test failed half-way.
struct Down(String);

impl Drop for Down {
    fn drop(&mut self) {
        match Lab::attach(&self.0).and_then(Lab::down) {
            Ok(()) | Err(Error::NotUp(_)) => {}
            Err(error) => eprintln!("taking `{}` down: {error}", self.0),
        }
    }
}
