//! What the attached program goes by: the table of VIPs and the rings that an earlier daemon's outer maps name.
//!
//! The kernel opens an inner map for a process only with `CAP_SYS_ADMIN`, so a small program of ours copies it out: it is
//! given the pinned outer maps and run without a packet (docs/decisions/capabilities.md).

use super::{Error, inheritance::OWN_MAPS, take};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_ebpf::{objects::MAP_READER, ring::Ring, vip::VipTable};
use std::{io, path::Path};

const READ_TABLE: &str = "read_table";
const READ_PART: &str = "read_part";
/// `XDP_PASS`: the copy was made.
const COPIED: u32 = 2;
/// The shortest frame that the kernel runs a program on.
const FRAME: usize = 14;

/// The pinned outer maps of an earlier daemon.
pub(super) struct Past {
    ebpf: Ebpf,
    table: Array<MapData, VipTable>,
    part: Array<MapData, Ring>,
}

impl Past {
    /// Those in this directory.
    ///
    /// # Errors
    /// They are not there, or are of another layout.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let mut loader = EbpfLoader::new();
        // Without the kernel's types, which the programs do not ask for.
        loader.btf(None);
        for (map, pin) in OWN_MAPS.map(|map| (map, directory.join(map))) {
            // The loader would pin a map of its own where there is none.
            let there = if pin.exists() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::NotFound)) };
            there.map_err(Error::new("open pinned map", pin.display()))?;
            loader.map_pin_path(map, pin);
        }
        let mut ebpf = loader.load(MAP_READER).map_err(Error::new("load", "the reader of maps"))?;
        for name in [READ_TABLE, READ_PART] {
            program(&mut ebpf, name)?.load().map_err(Error::new("load", name))?;
        }
        Ok(Self { table: take(&mut ebpf, "TABLE")?, part: take(&mut ebpf, "PART")?, ebpf })
    }

    /// The table of VIPs.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn table(&mut self) -> Result<VipTable, Error> {
        self.copy(READ_TABLE, 0)?;
        self.table.get(&0, 0).map_err(Error::new("read", "the table of VIPs"))
    }

    /// The part of a ring at this place.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn part(&mut self, place: u32) -> Result<Box<Ring>, Error> {
        self.copy(READ_PART, place)?;
        self.part.get(&0, 0).map(Box::new).map_err(Error::new("read", format!("ring part {place}")))
    }

    fn copy(&mut self, name: &'static str, place: u32) -> Result<(), Error> {
        let mut frame = [0; FRAME];
        frame.iter_mut().zip(place.to_ne_bytes()).for_each(|(to, byte)| *to = byte);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        let ran = program(&mut self.ebpf, name)?.test_run(options).map_err(Error::new("run", name))?;
        let copied = if ran.return_value == COPIED { Ok(()) } else { Err("nothing is there") };
        copied.map_err(Error::new("read", format!("place {place} by {name}")))
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, Error> {
    let program = ebpf.program_mut(name).ok_or("not in the object").map_err(Error::new("find", name))?;
    program.try_into().map_err(Error::new("use", name))
}
