//! Reals of many VIPs: one decapsulator for all of them, so that its maps weigh on the CPU as those of one real do.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, LpmTrie, MapData, lpm_trie::Key},
    programs::{SchedClassifier, TcAttachType},
};
use lb_ebpf::decap::{Address, ROLE_HOST, ROLE_VIP};
use tests::lab::Host;

/// The VIPs: of this network the first ones. All of it is local to the reals.
pub(crate) const VIPS: &str = "198.19.64.0/18";
const FIRST_VIP: u32 = Ipv4Addr::new(198, 19, 64, 1).to_bits();

/// A VIP by its number, from 0.
pub(crate) fn vip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_VIP + n)
}

/// The decapsulator of all reals; as long as it lives.
pub(crate) struct Decap {
    addresses: HashMap<MapData, Address, u32>,
    _program: Ebpf,
}

impl Decap {
    /// Makes hosts the reals of the first VIPs, by the addresses that `reals` names.
    ///
    /// # Errors
    /// A command, the program or its maps.
    pub(crate) fn attach(hosts: &[Host], reals: impl Iterator<Item = Ipv4Addr>, vips: u32) -> Result<Self> {
        let reals: Vec<_> = reals.collect();
        // As deployed it has room for one host's addresses.
        let room = u32::try_from(reals.len())? + vips;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("ADDRESSES", room);
        let mut program = loader.load(lb_ebpf::objects::DECAP).context("loading the decapsulator")?;
        let mut sources: LpmTrie<_, Address, u32> = take(&mut program, "SOURCES")?.try_into()?;
        sources.insert(&Key::new(Address::FAMILY_BITS, Address::ipv4([0; 4])), 1, 0)?;
        let mut addresses: HashMap<_, Address, u32> = take(&mut program, "ADDRESSES")?.try_into()?;
        for real in reals {
            addresses.insert(Address::ipv4(real.octets()), ROLE_HOST, 0)?;
        }
        for n in 0..vips {
            addresses.insert(Address::ipv4(vip(n).octets()), ROLE_VIP, 0)?;
        }
        let classifier: &mut SchedClassifier =
            program.program_mut("lb_decap").context("no program lb_decap")?.try_into()?;
        classifier.load()?;
        for host in hosts {
            host.run(&format!("ip route add local {VIPS} dev lo"))?;
            let attach = || -> Result<_> {
                host.enter()?;
                Ok(classifier.attach("eth0", TcAttachType::Ingress)?)
            };
            let attached = std::thread::scope(|scope| scope.spawn(attach).join());
            attached.map_err(|_| anyhow!("the thread on {} has panicked", host.name()))??;
        }
        Ok(Self { addresses, _program: program })
    }

    /// Whether what comes for this address is taken out of its tunnel.
    ///
    /// # Errors
    /// The map is full, or the address is not in it.
    pub(crate) fn set(&mut self, real: Ipv4Addr, decapsulates: bool) -> Result<()> {
        let address = Address::ipv4(real.octets());
        if decapsulates {
            self.addresses.insert(address, ROLE_HOST, 0)?;
        } else {
            self.addresses.remove(&address)?;
        }
        Ok(())
    }
}

fn take(program: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    program.take_map(name).with_context(|| format!("no map {name}"))
}
