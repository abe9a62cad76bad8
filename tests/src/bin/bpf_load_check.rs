//! Loads every BPF program of every embedded object into the running kernel: one line a program, and a failure's
//! verifier log. Run it on each kernel the objects must load on.

use std::process::ExitCode;

use aya::{
    Btf, EbpfLoader,
    programs::{Program, ProgramError},
};
use lb_ebpf::objects::{DECAP, LOAD_BALANCER, MAP_READER, PROBE_CAPTURE, PROOF, XDP_PASS};

fn main() -> ExitCode {
    let objects = [
        ("load_balancer", LOAD_BALANCER),
        ("map_reader", MAP_READER),
        ("probe_capture", PROBE_CAPTURE),
        ("decap", DECAP),
        ("proof", PROOF),
        ("xdp_pass", XDP_PASS),
    ];
    // Left to itself the loader reads the kernel's types anew for each object, which takes seconds under emulation.
    let kernel_types = Btf::from_sys_fs().ok();
    let failures: usize = objects.iter().map(|(name, object)| failures_of(name, object, kernel_types.as_ref())).sum();
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many programs of the object the kernel refused; an object whose maps it refused counts as one.
fn failures_of(object_name: &str, object: &[u8], kernel_types: Option<&Btf>) -> usize {
    let mut object = match EbpfLoader::new().btf(kernel_types).load(object) {
        Ok(object) => object,
        Err(error) => {
            println!("{object_name}: {error:?}");
            return 1;
        }
    };
    let mut failures = 0;
    for (name, program) in object.programs_mut() {
        match load(program) {
            Ok(()) => println!("{object_name}/{name}: loaded"),
            Err(error) => {
                println!("{object_name}/{name}: {error:?}");
                failures += 1;
            }
        }
    }
    failures
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        // The objects hold no other type; one that comes must be added here rather than pass unseen.
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
