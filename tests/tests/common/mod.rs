//! A lab in service, and clients that never stop: what the end-to-end tests share.
#![allow(dead_code, reason = "each test file uses its part")]

use aya::programs::links::{FdLink, PinnedLink};
use lbd::model::{Health, RealRow, Status};
use nix::{sys::signal::Signal, unistd::Pid};
use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tests::lab::{Host, Lab, LabConfig, LbdStart, Result, Running, VIP, VIP6, run, wait_for};

pub(crate) const TIMING: &str = "interval = \"500ms\"\ntimeout = \"500ms\"\nfall = 2";
/// `fall × 1.1 × interval + timeout + 0.3 s`, and as much again: this asserts that it happens, benches say how fast.
pub(crate) const DETECTION: Duration = Duration::from_millis(2 * (1_100 + 500 + 300));
/// For what takes moments.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A lab in service: provisioned reals, lbd running, every configured real up.
pub(crate) struct Service {
    pub(crate) lab: Lab,
    pub(crate) lbd: Running,
    options: &'static [&'static str],
}

impl Service {
    /// Three reals.
    pub(crate) fn up(test: &str) -> Self {
        Self::with(test, 3, 3, &[])
    }

    /// The first `configured` of some reals; lbd with further options.
    pub(crate) fn with(test: &str, reals: usize, configured: usize, options: &'static [&'static str]) -> Self {
        let lab = Lab::up(&LabConfig { name: format!("e{}-{test}", std::process::id()), reals }).unwrap();
        lab.provision().unwrap();
        let configured: Vec<_> = (1..=configured).map(|number| (number, 100)).collect();
        let lbd = lab.start_lbd(&lab.lbd_config_of(TIMING, &configured), options).unwrap();
        let service = Self { lab, lbd, options };
        for (real, _) in configured {
            service.wait_for_state(real, Health::Up);
        }
        service.wait_until_attached();
        service
    }

    /// A lab with both families: the IPv6 VIP and the IPv4 one, both over the IPv6 addresses of all reals.
    pub(crate) fn over_ipv6(test: &str, reals: usize) -> Self {
        let service = Self::dual(test, reals, |lab| {
            let reals: Vec<_> =
                lab.reals().iter().map(|real| format!("[[vip.real]]\naddress = \"{}\"\n", real.addr6())).collect();
            let vip = |address: IpAddr| {
                let head = format!("[[vip]]\naddress = \"{address}\"\nprotocol = \"tcp\"\nport = 80\n");
                [head.as_str(), "check = { kind = \"tcp\" }\n", &reals.concat()].concat()
            };
            [vip(VIP6.into()), vip(VIP.into())].concat()
        });
        service.wait_for("every real to be UP", |rows| rows.iter().all(|row| row.state == Health::Up));
        service.wait_until_attached();
        service
    }

    /// A lab with both families, each real provisioned for the VIPs of both, and lbd running with these VIPs.
    pub(crate) fn dual(test: &str, reals: usize, vips: impl FnOnce(&Lab) -> String) -> Self {
        let lab = Lab::up(&LabConfig { name: format!("e{}-{test}", std::process::id()), reals }).unwrap();
        lab.add_ipv6().unwrap();
        for real in lab.reals() {
            run(&mut apply6(&lab, real)).unwrap();
        }
        let (lb, lb6) = (lab.lb().addr(), lab.lb().addr6());
        let node = format!("interface = \"eth0\"\nouter_source = \"{lb}\"\nouter_source6 = \"{lb6}\"");
        let config = format!("[node]\n{node}\n[defaults]\n{TIMING}\n{}", vips(&lab));
        let lbd = lab.start_lbd(&config, &[]).unwrap();
        Self { lab, lbd, options: &[] }
    }

    /// The rows of all reals of all VIPs, once they are so.
    pub(crate) fn wait_for(&self, what: &str, so: impl Fn(&[RealRow]) -> bool) -> Vec<RealRow> {
        let rows = || Ok(Some(self.rows()?).filter(|rows| so(rows)));
        wait_for(what, Duration::from_secs(5) + DETECTION, rows).unwrap()
    }

    fn rows(&self) -> Result<Vec<RealRow>> {
        Ok(serde_json::from_str(&self.lbctl(&["real", "list", "-o", "json"])?).unwrap())
    }

    /// Starts lbd again, with the configuration as it is; returns when the new one is attached.
    pub(crate) fn restart(&mut self) {
        self.restart_so(&LbdStart::default());
    }

    /// The same in another manner.
    pub(crate) fn restart_so(&mut self, how: &LbdStart) {
        let config = fs::read_to_string(self.lab.lbd().config).unwrap();
        self.lbd = self.lab.start_lbd_so(&config, how, self.options).unwrap();
        self.wait_until_attached();
    }

    /// Ends lbd by a signal.
    pub(crate) fn end(&mut self, signal: Signal) {
        self.lbd.signal(signal).unwrap();
        self.lbd.wait(SOON).unwrap();
    }

    pub(crate) fn wait_until_attached(&self) {
        let attached = || Ok(self.lbctl(&["status"])?.contains("running for").then_some(()));
        wait_for("lbd to attach", SOON, attached).unwrap();
    }

    /// Writes the configuration over these reals with their weights; nobody is told.
    pub(crate) fn configure(&self, reals: &[(usize, u16)]) {
        fs::write(self.lab.lbd().config, self.lab.lbd_config_of(TIMING, reals)).unwrap();
    }

    pub(crate) fn lbctl(&self, words: &[&str]) -> Result<String> {
        run(self.lab.lbctl()?.args(words))
    }

    pub(crate) fn status(&self) -> Status {
        serde_json::from_str(&self.lbctl(&["status", "-o", "json"]).unwrap()).unwrap()
    }

    /// The row of a real, if it is configured.
    pub(crate) fn find_row(&self, real: usize) -> Result<Option<RealRow>> {
        let address = self.lab.real(real)?.addr();
        Ok(self.rows()?.into_iter().find(|row| row.real == address))
    }

    pub(crate) fn row(&self, real: usize) -> RealRow {
        self.find_row(real).unwrap().unwrap()
    }

    pub(crate) fn wait_for_state(&self, real: usize, state: Health) -> RealRow {
        let what = format!("real{real} to be {state:?}");
        let row = || Ok(self.find_row(real)?.filter(|row| row.state == state));
        let row = wait_for(&what, Duration::from_secs(5) + DETECTION, row).unwrap();
        // The data plane does its jobs in order: once it has answered, the ring is what the row says.
        self.status();
        row
    }

    /// Requests that must all succeed; how many each real answered.
    pub(crate) fn requests(&self, number: usize) -> [usize; 4] {
        let mut answered = [0; 4];
        for _ in 0..number {
            answered[request(self.lab.client()).unwrap() - 1] += 1;
        }
        answered
    }

    /// A download of so many MiB, one a second.
    pub(crate) fn download(&self, mib: u64) -> Download {
        Download::start(&self.lab, mib)
    }

    /// A download from this real.
    pub(crate) fn download_from(&self, real: usize, mib: u64) -> Download {
        // Which real it is to be is the hash's choice; those that come from others end at once.
        let tries = std::iter::repeat_with(|| self.download(mib));
        tries.take(100).find(|download| download.real == real).unwrap()
    }

    /// The kernel's ids of the link on the LB's device and of the program that it runs.
    pub(crate) fn link(&self) -> (u32, u32) {
        let mut pins = fs::read_dir(self.lab.pins()).unwrap().map(|entry| entry.unwrap().path());
        let pin = pins.find(|pin| pin.file_name().unwrap().to_string_lossy().starts_with("link_")).unwrap();
        let info = FdLink::from(PinnedLink::from_pin(pin).unwrap()).info().unwrap();
        (info.id(), info.program_id())
    }
}

impl Drop for Service {
    /// The daemon's log goes with the lab.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("lbd said:\n{}", fs::read_to_string(self.lab.lbd().log).unwrap_or_default());
        }
    }
}

/// `realsrv-setup apply` for the VIPs of both families.
pub(crate) fn apply6(lab: &Lab, real: &Host) -> Command {
    let mut apply = lab.realsrv_setup(real, "apply").unwrap();
    apply.args(["--vip", &VIP6.to_string(), "--lb-source", &lab.lb().addr6().to_string()]);
    apply
}

/// One request; the number of the real that answered.
fn request(client: &Host) -> Result<usize> {
    request_to(client, VIP.into())
}

/// The same to this VIP.
pub(crate) fn request_to(client: &Host, vip: IpAddr) -> Result<usize> {
    let name = client.http_get(&format!("http://{}/", SocketAddr::from((vip, 80))))?;
    Ok(name.trim().strip_prefix("real").unwrap().parse().unwrap())
}

/// One request of [`Requests`].
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
    pub(crate) real: Result<usize>,
}

/// A client that sends one request after the other, each on a connection of its own, until it is dropped.
pub(crate) struct Requests {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Vec<Outcome>>>,
}

impl Requests {
    pub(crate) fn start(service: &Service) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (client, stopped, counter) = (service.lab.client().clone(), stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut outcomes = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let real = request(&client);
                outcomes.push(Outcome { began, took: began.elapsed(), real });
                counter.fetch_add(1, Ordering::Relaxed);
            }
            outcomes
        });
        Self { stop, done, thread: Some(thread) }
    }

    /// Waits until so many more have ended, well or not.
    pub(crate) fn wait_for_more(&self, number: usize) {
        let wanted = self.done.load(Ordering::Relaxed) + number;
        let enough = || Ok((self.done.load(Ordering::Relaxed) >= wanted).then_some(()));
        wait_for("requests to end", Duration::from_mins(1), enough).unwrap();
    }

    /// All that were sent.
    pub(crate) fn finish(mut self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }

    /// Requires that all succeeded; says how many there were and how long the slowest took.
    pub(crate) fn finish_without_failure(self) {
        let outcomes = self.finish();
        let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.real.is_err()).collect();
        assert!(failed.is_empty(), "{} of {} requests failed: {failed:#?}", failed.len(), outcomes.len());
        println!("{} requests, none failed, the slowest in {:?}", outcomes.len(), slowest(&outcomes));
    }
}

impl Drop for Requests {
    /// A test that fails must not go on sending from a lab that is taken down.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The thread of a process that has this name.
pub(crate) fn thread(pid: u32, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap());
    let named = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap().trim() == name;
    let task = tasks.into_iter().find(named).unwrap();
    Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap())
}

pub(crate) fn slowest(outcomes: &[Outcome]) -> Duration {
    outcomes.iter().map(|outcome| outcome.took).max().unwrap()
}

/// A download under way; dropping it ends it.
pub(crate) struct Download {
    /// The number of the real that sends it.
    pub(crate) real: usize,
    curl: Running,
    size: PathBuf,
    mib: u64,
}

impl Download {
    fn start(lab: &Lab, mib: u64) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [headers, size] =
            ["headers", "size"].map(|kind| lab.client().dir().join(format!("download-{number}.{kind}")));
        let mut curl = lab.client().command("curl");
        curl.args(["-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{size_download}", "-D"]).arg(&headers);
        curl.args(["-r", &format!("0-{}", (mib << 20) - 1), &format!("http://{}/big?rate=1m", lab.vip())]);
        let curl = Running::start(curl.stdout(File::create(&size).unwrap())).unwrap();
        let real = || {
            let text = fs::read_to_string(&headers).unwrap_or_default();
            let name = text.lines().find_map(|line| line.strip_prefix("X-Real: real"));
            Ok(name.and_then(|number| number.trim().parse().ok()))
        };
        let real = wait_for("the download to begin", SOON, real).unwrap();
        Self { real, curl, size, mib }
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.curl.exited().unwrap().is_none()
    }

    /// Waits until more of it has come than now.
    pub(crate) fn goes_on(&self) {
        let written = || {
            let io = fs::read_to_string(format!("/proc/{}/io", self.curl.pid())).unwrap();
            io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse::<u64>().unwrap()
        };
        let before = written();
        wait_for("more of the download", SOON, || Ok((written() > before).then_some(()))).unwrap();
    }

    /// Waits for its end, which must be a good one; how many bytes came.
    pub(crate) fn finish(mut self) -> u64 {
        let status = self.curl.wait(Duration::from_secs(self.mib * 2 + 10)).unwrap();
        assert!(status.success(), "the download from real{} broke: {status}", self.real);
        fs::read_to_string(&self.size).unwrap().parse().unwrap()
    }
}
