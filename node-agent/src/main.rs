//! The agent of a node, as PID 1 starts it. Everything is in the library, so that the lab can run a thousand of them in one process.

use std::convert::Infallible;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context;

fn main() -> ExitCode {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == cid_agent::JOB_NAME)
    {
        return match cid_agent::run_job() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail("a job", &error),
        };
    }
    match run() {
        Ok(never) => match never {},
        // PID 1 shows it and starts the agent again.
        Err(error) => fail("cid-agent", &error),
    }
}

fn fail(who: &str, error: &anyhow::Error) -> ExitCode {
    // `eprintln!` would panic when the console is full.
    let _ = std::io::stderr().write_all(format!("{who}: {error:#}\n").as_bytes());
    ExitCode::FAILURE
}

fn run() -> anyhow::Result<Infallible> {
    let supervision = cid_sys::descriptors::take_inherited(cid_protocol::supervision::AGENT_FD, 1)
        .ok()
        .and_then(|mut taken| taken.pop())
        .context("no supervision socket: cid-init starts this program, people do not")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    runtime.block_on(cid_agent::run(supervision))
}
