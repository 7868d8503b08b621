//! What the process tells the supervisor that started it, when there is one that wants to hear: systemd waits with what
//! comes after the service until it serves (`Type=notify`, see `sd_notify(3)`).

use std::{
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
};

use anyhow::Context as _;

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Connections are accepted.
    Serving,
    /// It has begun to stop.
    Stopping,
}

impl State {
    fn message(self) -> &'static [u8] {
        match self {
            Self::Serving => b"READY=1",
            Self::Stopping => b"STOPPING=1",
        }
    }
}

/// Who started the process.
#[derive(Debug)]
pub struct Supervisor(Option<(UnixDatagram, SocketAddr)>);

impl Supervisor {
    /// The one that listens at this address: a path, or a name after an `@`; nobody when there is none.
    pub fn at(address: Option<&str>) -> anyhow::Result<Self> {
        let Some(address) = address else { return Ok(Self(None)) };
        let address = parse(address).context("NOTIFY_SOCKET names no address")?;
        let socket = UnixDatagram::unbound().context("no socket for the supervisor")?;
        Ok(Self(Some((socket, address))))
    }

    /// Tells it.
    pub fn tell(&self, state: State) -> anyhow::Result<()> {
        let Some((socket, address)) = &self.0 else { return Ok(()) };
        socket.send_to_addr(state.message(), address).context("the supervisor cannot be told")?;
        Ok(())
    }
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(address)
}
