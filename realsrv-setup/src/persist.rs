//! What makes the host a real again at boot: a unit, the modules, the settings. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    desired::{Decap, Desired, Mss},
    family::Family,
};

/// Relative to the root.
const UNIT: &str = "etc/systemd/system/realsrv-setup.service";
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/realsrv-setup.service";
const MODULES: &str = "etc/modules-load.d/realsrv-setup.conf";
const SYSCTLS: &str = "etc/sysctl.d/90-realsrv-setup.conf";

/// What serves the VIPs or announces them, as Debian calls it. An order only: none is started for it.
const BEFORE: [&str; 15] = [
    "apache2",
    "bird",
    "bird6",
    "caddy",
    "envoy",
    "exabgp",
    "frr",
    "gobgpd",
    "haproxy",
    "keepalived",
    "nginx",
    "quagga",
    "squid",
    "unbound",
    "varnish",
];

/// Where the files go, and what the unit starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Persist {
    /// The directory that has `etc`.
    pub root: PathBuf,
    /// This program.
    pub program: PathBuf,
    /// Where it keeps its journal.
    pub state_dir: PathBuf,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contents {
    /// A file with this text.
    Text(String),
    /// A symbolic link to this.
    Link(String),
}

/// Every path that may be written below `root`.
#[must_use]
pub fn paths(root: &Path) -> [String; 4] {
    [UNIT, ENABLED, MODULES, SYSCTLS].map(|path| below(root, path))
}

fn below(root: &Path, path: &str) -> String {
    root.join(path).display().to_string()
}

/// The files that `desired` needs; `settings` are those of its plan, as they should be.
#[must_use]
pub fn files(
    desired: &Desired,
    tunnels: &BTreeSet<Family>,
    settings: &BTreeMap<String, String>,
) -> BTreeMap<String, Contents> {
    let Some(persist) = &desired.persist else { return BTreeMap::new() };
    let modules = lines(tunnels.iter().map(|family| family.tunnel_module().to_owned()));
    let texts = [(SYSCTLS, sysctls(settings)), (MODULES, modules), (UNIT, unit(desired, persist))];
    // A file without a line is none. The unit is enabled once it is there.
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(path, text)| (path, Contents::Text(text)));
    let enabled = (ENABLED, Contents::Link("../realsrv-setup.service".to_owned()));
    texts.chain([enabled]).map(|(path, contents)| (below(&persist.root, path), contents)).collect()
}

/// With slashes: a device name may have dots. systemd applies the lines of a device again when it appears.
fn sysctls(settings: &BTreeMap<String, String>) -> String {
    lines(settings.iter().map(|(name, value)| format!("{} = {value}", name.replace('.', "/"))))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

fn unit(desired: &Desired, persist: &Persist) -> String {
    let start = command(desired, persist).iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    unit_that_starts("# Written by realsrv-setup apply --persist; realsrv-setup remove takes it away.\n", "", &start)
}

/// The unit of a package: `apply` as it was the last time, if it was. That of `--persist` takes its place.
#[must_use]
pub fn packaged_unit() -> String {
    let applied = "ConditionPathExists=/var/lib/realsrv-setup/journal.json\n";
    unit_that_starts("", applied, "/usr/sbin/realsrv-setup apply")
}

/// Ordering alone (`Before=`): a real that failed its proof still boots, and says so in `systemctl --failed`.
///
/// It needs the host's addresses, which `network.target` does not wait for.
fn unit_that_starts(head: &str, condition: &str, start: &str) -> String {
    let before = BEFORE.map(|name| format!("{name}.service")).join(" ");
    format!(
        "{head}\
         [Unit]\n\
         Description=DSR real server: VIPs, tunnel, ARP silence\n\
         {condition}\
         Wants=network-online.target\n\
         After=network-online.target systemd-modules-load.service systemd-sysctl.service nftables.service\n\
         Before={before}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart={start}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// The command line that makes an unconfigured host as `desired`.
fn command(desired: &Desired, persist: &Persist) -> Vec<String> {
    let decap = match desired.decap {
        Decap::Auto => "auto",
        Decap::Ipip => "ipip",
        Decap::Ebpf => "ebpf",
    };
    let mss = match desired.mss {
        Mss::Auto => "auto".to_owned(),
        Mss::Off => "off".to_owned(),
        Mss::Fixed(octets) => octets.to_string(),
    };
    let program = persist.program.display().to_string();
    let mut words = vec![program, "apply".to_owned()];
    let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    option("vip", list(&desired.vips));
    option("decap", decap.to_owned());
    if !desired.lb_sources.is_empty() {
        option("lb-source", list(&desired.lb_sources));
    }
    option("mss", mss);
    if !desired.interfaces.is_empty() {
        option("interface", list(&desired.interfaces));
    }
    option("state-dir", persist.state_dir.display().to_string());
    words
}

fn list<T: ToString>(values: &BTreeSet<T>) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A word of a command line (systemd.service(5)): `%` and `$` are doubled, and what is not plain is in quotes.
fn quoted(word: &str) -> String {
    let doubled = word.replace('%', "%%").replace('$', "$$");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@+=%$".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return doubled;
    }
    format!("\"{}\"", doubled.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired() -> Desired {
        Desired {
            vips: ["198.19.10.1", "fd00:19:10::1"].map(|vip| vip.parse().unwrap()).into(),
            lb_sources: ["198.18.221.0/28".parse().unwrap()].into(),
            persist: Some(Persist {
                root: "/".into(),
                program: "/usr/sbin/realsrv-setup".into(),
                state_dir: "/var/lib/realsrv-setup".into(),
            }),
            ..Desired::default()
        }
    }

    #[test]
    fn unit_starts_apply_with_all_that_is_desired() {
        let unit = unit(&desired(), &desired().persist.unwrap());
        let start = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(
            start,
            "ExecStart=/usr/sbin/realsrv-setup apply --vip 198.19.10.1,fd00:19:10::1 --decap auto \
             --lb-source 198.18.221.0/28 --mss auto --state-dir /var/lib/realsrv-setup"
        );
    }

    #[test]
    fn word_with_what_systemd_would_interpret_is_quoted() {
        assert_eq!(quoted("/var/lib/a b"), "\"/var/lib/a b\"");
        assert_eq!(quoted("/a%i$HOME"), "/a%%i$$HOME");
        assert_eq!(quoted("a\"b\\c"), "\"a\\\"b\\\\c\"");
    }

    #[test]
    fn settings_have_slashes_and_modules_come_with_the_kernels_tunnels_only() {
        let settings = [("net.ipv4.conf.tunl0.rp_filter".to_owned(), "2".to_owned())].into();
        let with = files(&desired(), &[Family::Ipv4].into(), &settings);
        assert_eq!(
            with["/etc/sysctl.d/90-realsrv-setup.conf"],
            Contents::Text("net/ipv4/conf/tunl0/rp_filter = 2\n".into())
        );
        assert_eq!(with["/etc/modules-load.d/realsrv-setup.conf"], Contents::Text("ipip\n".into()));
        assert_eq!(files(&desired(), &BTreeSet::new(), &settings).len(), 3);
    }
}
