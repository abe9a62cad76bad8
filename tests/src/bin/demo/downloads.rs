//! Long downloads, one from each real, that are under way while a real fails.

use std::{fs, process::Command, time::Duration};

use anyhow::{Result, bail};
use tests::lab::{Host, Running, wait_for};

use crate::stage::Stage;

/// Bytes of a download, and bytes a second: ten seconds, longer than a fault is left in place.
const LENGTH: u64 = 10 << 20;
const RATE: &str = "1m";
/// In how many attempts every real must have been hit.
const ATTEMPTS: usize = 200;

/// A download by curl.
pub(crate) struct Download {
    pub(crate) real: String,
    curl: Running,
}

/// How a download ended.
pub(crate) struct Ended {
    pub(crate) real: String,
    pub(crate) complete: bool,
}

/// Starts downloads until there is one from each real; those that hit a real a second time are ended at once.
pub(crate) fn start_one_on_each_real(stage: &Stage) -> Result<Vec<Download>> {
    let mut downloads: Vec<Download> = Vec::new();
    for attempt in 0..ATTEMPTS {
        if downloads.len() == stage.lab.reals().len() {
            return Ok(downloads);
        }
        let download = start(stage, attempt)?;
        if !downloads.iter().any(|other| other.real == download.real) {
            downloads.push(download);
        }
    }
    bail!("{ATTEMPTS} downloads hit only {} reals", downloads.len())
}

/// Waits for all of them to end.
pub(crate) fn finish(downloads: Vec<Download>) -> Result<Vec<Ended>> {
    let end = |mut download: Download| {
        // curl knows the length it was promised: it fails if anything is missing.
        let complete = download.curl.wait(Duration::from_mins(1))?.success();
        Ok(Ended { real: download.real, complete })
    };
    downloads.into_iter().map(end).collect()
}

fn start(stage: &Stage, attempt: usize) -> Result<Download> {
    let client = stage.lab.client();
    let headers = client.dir().join(format!("download-{attempt}"));
    // An earlier act's headers are not this one's.
    let _ = fs::remove_file(&headers);
    let mut command = curl(client, stage);
    command.arg("-D").arg(&headers);
    let curl = Running::start(&mut command)?;
    let real = wait_for("the download to begin", Duration::from_secs(5), || {
        let headers = fs::read_to_string(&headers).unwrap_or_default();
        let complete = headers.ends_with("\r\n\r\n");
        let name = headers.lines().find_map(|line| line.strip_prefix("X-Real: "));
        Ok(name.filter(|_| complete).map(str::to_owned))
    })?;
    Ok(Download { real, curl })
}

fn curl(client: &Host, stage: &Stage) -> Command {
    let mut curl = client.command("curl");
    curl.args(["--silent", "--fail", "--noproxy", "*", "--max-time", "50", "--output", "/dev/null"]);
    curl.args(["--range", &format!("0-{}", LENGTH - 1)]);
    curl.arg(format!("http://{}/big?rate={RATE}", stage.lab.vip()));
    curl
}
