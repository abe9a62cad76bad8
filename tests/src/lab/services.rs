//! What turns the bare network into a load-balanced service: reals provisioned by `realsrv-setup`, and `lbd` on the LB.

use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use super::{
    Host, Lab, VIP,
    error::{Error, Result, file},
    process::{Running, run, wait_until},
};

/// What lbd is given to load its programs and to open its socket.
const BOUND: Duration = Duration::from_secs(15);

/// A program of this workspace: beside the running one, or above it, if that is a test in `deps`.
///
/// # Errors
/// [`Error::NotBuilt`].
pub fn binary(program: &'static str) -> Result<PathBuf> {
    let here = std::env::current_exe().map_err(file("finding", "this program"))?;
    let beside = here.parent().filter(|dir| !dir.ends_with("deps")).or_else(|| here.ancestors().nth(2));
    let path = beside.unwrap_or(&here).join(program);
    if path.is_file() { Ok(path) } else { Err(Error::NotBuilt { program, path }) }
}

/// Where the daemon of the LB keeps its things.
#[derive(Debug, Clone)]
pub struct Lbd {
    /// The configuration.
    pub config: PathBuf,
    /// The socket that `lbctl` speaks to.
    pub socket: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// The directory for pinned maps and links.
    pub pins: PathBuf,
    /// What it prints.
    pub log: PathBuf,
}

/// How lbd is started.
#[derive(Debug, Clone, Default)]
pub struct LbdStart {
    /// A program and its arguments that become lbd (`setpriv …`); empty: none.
    pub wrapper: Vec<String>,
    /// Variables beside those of this process.
    pub environment: Vec<(String, String)>,
    /// Another lbd than that of this workspace.
    pub program: Option<PathBuf>,
}

impl Lab {
    /// Makes each host a DSR real for the VIP: `realsrv-setup apply`.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], or what `realsrv-setup` says.
    pub fn provision(&self) -> Result<()> {
        self.reals().iter().try_for_each(|real| run(&mut self.realsrv_setup(real, "apply")?).map(drop))
    }

    /// `realsrv-setup COMMAND` for this lab's VIP on one real: `plan`, `apply`, `check` or `remove`.
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn realsrv_setup(&self, real: &Host, subcommand: &str) -> Result<Command> {
        let mut command = real.command(binary("realsrv-setup")?);
        command.args([subcommand, "--vip", &VIP.to_string()]);
        if matches!(subcommand, "plan" | "apply") {
            command.args(["--lb-source", &self.lb().addr().to_string()]);
        }
        command.arg("--state-dir").arg(real.dir().join("realsrv-setup"));
        Ok(command)
    }

    /// The paths of this lab's lbd.
    #[must_use]
    pub fn lbd(&self) -> Lbd {
        self.lbd_on(self.lb())
    }

    /// The paths of the lbd on this load balancer.
    #[must_use]
    pub fn lbd_on(&self, lb: &Host) -> Lbd {
        let dir = lb.dir();
        Lbd {
            config: dir.join("lbd.toml"),
            socket: dir.join("lbd.sock"),
            state: dir.join("state"),
            pins: self.pins_of(lb),
            log: dir.join("lbd.log"),
        }
    }

    /// A configuration for lbd: the VIP on port 80 over all reals, checked by TCP; `defaults` are the lines of its
    /// section `[defaults]`, for example `interval = "500ms"`.
    #[must_use]
    pub fn lbd_config(&self, defaults: &str) -> String {
        let reals: Vec<_> = (1..=self.reals().len()).map(|number| (number, 100)).collect();
        self.lbd_config_of(defaults, &reals)
    }

    /// The same over some reals, each with its number and its weight.
    #[must_use]
    pub fn lbd_config_of(&self, defaults: &str, reals: &[(usize, u16)]) -> String {
        let mut config = format!(
            "[node]\ninterface = \"eth0\"\nouter_source = \"{lb}\"\n\n[defaults]\n{defaults}\n\n\
             [[vip]]\naddress = \"{VIP}\"\nprotocol = \"tcp\"\nport = 80\ncheck = {{ kind = \"tcp\" }}\n",
            lb = self.lb().addr(),
        );
        for (real, weight) in reals.iter().filter_map(|&(number, weight)| Some((self.real(number).ok()?, weight))) {
            // Writing to a String cannot fail.
            let _ = write!(config, "\n  [[vip.real]]\n  address = \"{}\"\n  weight = {weight}\n", real.addr());
        }
        config
    }

    /// Starts lbd on the LB with this configuration and further options; when this returns, it answers on its socket.
    /// Its output goes to the [log](Lbd::log).
    ///
    /// # Errors
    /// [`Error::NotBuilt`], what lbd logged if it ended, [`Error::TimedOut`] if it opens no socket.
    pub fn start_lbd(&self, config: &str, options: &[&str]) -> Result<Running> {
        self.start_lbd_on(self.lb(), config, options)
    }

    /// The same on this load balancer.
    ///
    /// # Errors
    /// As [`Lab::start_lbd`].
    pub fn start_lbd_on(&self, lb: &Host, config: &str, options: &[&str]) -> Result<Running> {
        self.start_on(lb, config, &LbdStart::default(), options)
    }

    /// The same in another manner.
    ///
    /// # Errors
    /// As [`Lab::start_lbd`].
    pub fn start_lbd_so(&self, config: &str, how: &LbdStart, options: &[&str]) -> Result<Running> {
        self.start_on(self.lb(), config, how, options)
    }

    fn start_on(&self, lb: &Host, config: &str, how: &LbdStart, options: &[&str]) -> Result<Running> {
        let (mut lbd, paths) = (self.spawn_on(lb, config, how, options)?, self.lbd_on(lb));
        wait_until("lbd to answer on its socket", BOUND, || match lbd.exited()? {
            Some(status) => {
                let stderr = fs::read_to_string(&paths.log).unwrap_or_default();
                Err(Error::Failed { command: "lbd run".to_owned(), status, stderr })
            }
            None => Ok(UnixStream::connect(&paths.socket).is_ok().then_some(())),
        })?;
        Ok(lbd)
    }

    /// The same without waiting for anything.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], or the program cannot be started.
    pub fn spawn_lbd(&self, config: &str, how: &LbdStart, options: &[&str]) -> Result<Running> {
        self.spawn_on(self.lb(), config, how, options)
    }

    fn spawn_on(&self, lb: &Host, config: &str, how: &LbdStart, options: &[&str]) -> Result<Running> {
        let paths = self.lbd_on(lb);
        fs::write(&paths.config, config).map_err(file("writing", &paths.config))?;
        let log = File::options().create(true).append(true).open(&paths.log).map_err(file("opening", &paths.log))?;
        let stderr = log.try_clone().map_err(file("opening", &paths.log))?;
        let program = how.program.clone().map_or_else(|| binary("lbd"), Ok)?;
        let mut command = match how.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = lb.command(wrapper);
                command.args(arguments).arg(program);
                command
            }
            None => lb.command(program),
        };
        command.envs(how.environment.iter().map(|(name, value)| (name, value)));
        command.args(["run", "--config"]).arg(&paths.config).arg("--socket").arg(&paths.socket);
        command.arg("--state-dir").arg(&paths.state).arg("--bpffs").arg(&paths.pins).args(options);
        // A group of its own: Ctrl-C at the terminal is not meant for the daemon.
        Running::start(command.stdout(log).stderr(stderr).process_group(0))
    }

    /// `lbctl`, speaking to this lab's lbd.
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn lbctl(&self) -> Result<Command> {
        let mut command = Command::new(binary("lbctl")?);
        command.arg("--socket").arg(self.lbd().socket);
        Ok(command)
    }
}
