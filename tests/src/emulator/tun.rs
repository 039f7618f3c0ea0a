//! The path between two network namespaces, by one TUN device in each: real packets of real stacks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::forward::{Forwarder, Port};
use super::line::Path;
use crate::bench::failure::{During, Result};
use crate::bench::process;

/// Name of the device in either namespace.
pub const DEVICE: &str = "towline0";
/// As Ethernet's.
pub const MTU: u16 = 1500;
/// Packets that wait in the kernel for the emulator; overflow is a drop of the device.
const QUEUE: u32 = 10_000;

struct Device(SyncDevice);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Port for Device {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).map(drop)
    }
}

/// Makes a device in the namespace of that process. The thread stays in the namespace.
fn device(netns_of: u32) -> Result<Arc<Device>> {
    process::enter(netns_of)?;
    let device = DeviceBuilder::new()
        .name(DEVICE)
        .layer(Layer::L3)
        .mtu(MTU)
        .with(|builder| {
            builder.tx_queue_len(QUEUE);
        })
        .build_sync()
        .during("TUN device")?;
    device.set_nonblocking(true).during("TUN device")?;
    Ok(Arc::new(Device(device)))
}

/// A path between the namespaces of two processes. It and its devices end with the process.
pub fn start(near: u32, far: u32, outward: Path, inward: Path) -> Result<Forwarder> {
    let near = device(near)?;
    let far = device(far)?;
    Ok(Forwarder::start(near, far, outward, inward))
}
