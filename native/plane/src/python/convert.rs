//! Conversions between the contract's Python objects and ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use transport::coalesce::Merge;
use transport::contract::{Address, Endpoint, Event, Flow, Keypair, Network, PairingEpoch, PairingGate, Reason};
use transport::peers::PeerCounters;
use zeroize::Zeroizing;

use crate::counters::Reading;
use crate::offloads::Offloads;

const CONTRACT: &str = "rustguard_py.planes.contract";
const ENDPOINT: &str = "rustguard_py.model.endpoint";
const STATISTICS: &str = "rustguard_py.model.statistics";

fn make<'py>(
    py: Python<'py>,
    module: &str,
    name: &str,
    arguments: impl pyo3::call::PyCallArgs<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    py.import(module)?.getattr(name)?.call1(arguments)
}

/// Convert a key of 32 bytes.
pub fn key(object: &Bound<'_, PyAny>) -> PyResult<Zeroizing<[u8; 32]>> {
    let bytes: &[u8] = object.extract()?;
    let key = bytes.try_into().map_err(|_| PyValueError::new_err("a key has 32 bytes"))?;
    Ok(Zeroizing::new(key))
}

/// Convert the contract's Endpoint, with our address that it was heard at.
pub fn endpoint(object: &Bound<'_, PyAny>) -> PyResult<Endpoint> {
    let tuple = object.cast::<PyTuple>()?;
    let remote = remote(tuple)?;
    if tuple.is_exact_instance_of::<PyTuple>() {
        return Ok(remote.into());
    }
    let local = Some(local(&object.getattr("local")?)?);
    Ok(Endpoint { remote, local, interface: object.getattr("interface")?.extract()? })
}

/// Convert an address of 4 or 16 bytes.
fn local(object: &Bound<'_, PyAny>) -> PyResult<IpAddr> {
    let bytes: &[u8] = object.extract()?;
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| PyValueError::new_err("an address has 4 or 16 bytes"))
}

/// Convert (host, port), or (host, port, flowinfo, scope_id) for IPv6. The host is an address.
fn remote(tuple: &Bound<'_, PyTuple>) -> PyResult<SocketAddr> {
    let host: String = tuple.get_item(0)?.extract()?;
    let port: u16 = tuple.get_item(1)?.extract()?;
    let (address, zone) = host.split_once('%').unwrap_or((&host, ""));
    if !address.contains(':') {
        return Ok((address.parse::<Ipv4Addr>()?, port).into());
    }
    let (flow, scope) = if tuple.len() == 4 {
        (tuple.get_item(2)?.extract()?, tuple.get_item(3)?.extract()?)
    } else {
        (0, zone_index(tuple.py(), zone)?)
    };
    Ok(SocketAddrV6::new(address.parse::<Ipv6Addr>()?, port, flow, scope).into())
}

/// Return the number of the interface that a zone such as `eth0` or `3` names, or 0 for an empty
/// zone.
fn zone_index(py: Python<'_>, zone: &str) -> PyResult<u32> {
    match zone.parse() {
        Ok(number) => Ok(number),
        Err(_) if zone.is_empty() => Ok(0),
        Err(_) => py.import("socket")?.call_method1("if_nametoindex", (zone,))?.extract(),
    }
}

/// Convert to an endpoint of the socket module, or to the contract's `heard` if our address is
/// known.
pub fn from_endpoint(py: Python<'_>, Endpoint { remote, local, interface }: Endpoint) -> PyResult<Bound<'_, PyAny>> {
    let host = remote.ip().to_string();
    let plain = match remote {
        SocketAddr::V4(_) => (host, remote.port()).into_pyobject(py),
        SocketAddr::V6(v6) => (host, remote.port(), v6.flowinfo(), v6.scope_id()).into_pyobject(py),
    }?;
    match local {
        None => Ok(plain.into_any()),
        Some(IpAddr::V4(v4)) => make(py, ENDPOINT, "heard", (plain, PyBytes::new(py, &v4.octets()), interface)),
        Some(IpAddr::V6(v6)) => make(py, ENDPOINT, "heard", (plain, PyBytes::new(py, &v6.octets()), interface)),
    }
}

/// Convert an IPv4Network or IPv6Network.
pub fn network(object: &Bound<'_, PyAny>) -> PyResult<Network> {
    let prefix = object.getattr("prefixlen")?.extract()?;
    let packed = object.getattr("network_address")?.getattr("packed")?;
    let packed: &[u8] = packed.extract()?;
    let address = match packed.len() {
        4 => Address::V4(packed.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))),
        16 => Address::V6(packed.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte))),
        _ => return Err(PyValueError::new_err("an address has 4 or 16 bytes")),
    };
    Ok(Network { address, prefix })
}

/// Convert a sequence of networks.
pub fn networks(object: &Bound<'_, PyAny>) -> PyResult<Vec<Network>> {
    object.try_iter()?.map(|one| network(&one?)).collect()
}

/// Convert a contract.Keypair.
pub fn keypair(object: &Bound<'_, PyAny>) -> PyResult<Keypair> {
    Ok(Keypair {
        local_index: object.getattr("local_index")?.extract()?,
        remote_index: object.getattr("remote_index")?.extract()?,
        send_key: key(&object.getattr("send_key")?)?,
        receive_key: key(&object.getattr("receive_key")?)?,
        initiator: object.getattr("initiator")?.extract()?,
        birth: object.getattr("birth")?.extract()?,
    })
}

/// Convert a model.pairing.PairingEpoch.
fn pairing_epoch(object: &Bound<'_, PyAny>) -> PyResult<PairingEpoch> {
    let secret = key(&object.getattr("secret")?)?;
    let ephemeral = *key(&object.getattr("ephemeral")?)?;
    Ok(PairingEpoch::new(object.getattr("number")?.extract()?, &secret, ephemeral))
}

/// Convert a model.pairing.PairingGate.
pub fn pairing_gate(object: &Bound<'_, PyAny>) -> PyResult<PairingGate> {
    let previous: Option<Bound<'_, PyAny>> = object.getattr("previous")?.extract()?;
    Ok(PairingGate {
        server_id: *key(&object.getattr("server_id")?)?,
        current: pairing_epoch(&object.getattr("current")?)?,
        previous: previous.map(|given| pairing_epoch(&given)).transpose()?,
        linger: object.getattr("linger")?.extract()?,
    })
}

/// Make the contract's objects for flows.
pub fn flows<'py>(py: Python<'py>, flows: &[Flow]) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let make_one = |flow: &Flow| {
        let Flow { local_index, remote_index, sent, next, received } = *flow;
        make(py, CONTRACT, "Flow", (local_index, remote_index, sent, next, received))
    };
    flows.iter().map(make_one).collect()
}

/// Convert a model.offloads.Offloads.
pub fn offloads(object: &Bound<'_, PyAny>) -> PyResult<Offloads> {
    let is_on = |name: &str| object.getattr(name)?.extract::<bool>();
    Ok(Offloads {
        tun_checksum: is_on("tun_checksum")?,
        tso: is_on("tso")?,
        uso: is_on("uso")?,
        merge: Merge { tcp: is_on("tcp_merging")?, udp: is_on("udp_merging")?, short_tail: is_on("short_tail")? },
        udp_segmentation: is_on("udp_segmentation")?,
        udp_gro: is_on("udp_gro")?,
    })
}

/// Make the contract's object for an event.
pub fn event<'py>(py: Python<'py>, event: &Event) -> PyResult<Bound<'py, PyAny>> {
    match event {
        Event::HandshakeReceived { datagram, source, proven } => {
            let source = from_endpoint(py, *source)?;
            make(py, CONTRACT, "HandshakeReceived", (PyBytes::new(py, datagram), source, *proven))
        }
        Event::ForeignReceived(datagram, source) => {
            make(py, CONTRACT, "ForeignReceived", (PyBytes::new(py, datagram), from_endpoint(py, *source)?))
        }
        Event::HandshakeWanted(peer, reason) => {
            let name = match reason {
                Reason::NoSession => "NO_SESSION",
                Reason::Rekey => "REKEY",
                Reason::NoAnswer => "NO_ANSWER",
                Reason::InterfaceUp => "INTERFACE_UP",
            };
            let reason = py.import(CONTRACT)?.getattr("Reason")?.getattr(name)?;
            make(py, CONTRACT, "HandshakeWanted", (*peer, reason))
        }
        Event::KeypairConfirmed(peer, index) => make(py, CONTRACT, "KeypairConfirmed", (*peer, *index)),
        Event::EndpointMoved(peer, endpoint) => {
            make(py, CONTRACT, "EndpointMoved", (*peer, from_endpoint(py, *endpoint)?))
        }
        Event::Fault { message, fatal } => make(py, CONTRACT, "Fault", (message, *fatal)),
    }
}

/// Convert one of the contract's events.
pub fn to_event(object: &Bound<'_, PyAny>) -> PyResult<Event> {
    let peer = || object.getattr("peer")?.extract();
    let datagram = || -> PyResult<Box<[u8]>> { Ok(object.getattr("datagram")?.extract::<&[u8]>()?.into()) };
    let at = |name: &str| endpoint(&object.getattr(name)?);
    Ok(match object.get_type().name()?.to_str()? {
        "HandshakeReceived" => {
            let proven = object.getattr("proven")?.extract()?;
            Event::HandshakeReceived { datagram: datagram()?, source: at("source")?, proven }
        }
        "ForeignReceived" => Event::ForeignReceived(datagram()?, at("source")?),
        "HandshakeWanted" => {
            let reason: String = object.getattr("reason")?.getattr("name")?.extract()?;
            let reason = match &*reason {
                "NO_SESSION" => Reason::NoSession,
                "REKEY" => Reason::Rekey,
                "INTERFACE_UP" => Reason::InterfaceUp,
                _ => Reason::NoAnswer,
            };
            Event::HandshakeWanted(peer()?, reason)
        }
        "KeypairConfirmed" => Event::KeypairConfirmed(peer()?, object.getattr("local_index")?.extract()?),
        "EndpointMoved" => Event::EndpointMoved(peer()?, at("endpoint")?),
        "Fault" => Event::Fault {
            message: object.getattr("message")?.extract()?,
            fatal: object.getattr("fatal")?.extract()?,
        },
        other => return Err(PyValueError::new_err(format!("{other} is no event"))),
    })
}

/// Make the contract's PlaneStats.
pub fn stats<'py>(
    py: Python<'py>,
    peers: Vec<(u64, Option<Endpoint>, PeerCounters)>,
    drops: Vec<(String, u64)>,
    notes: Vec<String>,
    workers: Vec<(String, Reading)>,
) -> PyResult<Bound<'py, PyAny>> {
    let class = py.import(STATISTICS)?.getattr("PeerStats")?;
    let by_peer = PyDict::new(py);
    for (peer, endpoint, counters) in peers {
        let endpoint = endpoint.map(|endpoint| from_endpoint(py, endpoint)).transpose()?;
        let stats = PyDict::new(py);
        stats.set_item("endpoint", endpoint)?;
        for (name, count) in [
            ("rx_bytes", counters.rx_bytes),
            ("tx_bytes", counters.tx_bytes),
            ("rx_packets", counters.rx_packets),
            ("tx_packets", counters.tx_packets),
            ("handshakes", counters.handshakes),
            ("drops", counters.drops),
            ("rx_handshake_bytes", counters.rx_handshake_bytes),
            ("tx_handshake_bytes", counters.tx_handshake_bytes),
        ] {
            stats.set_item(name, count)?;
        }
        stats.set_item("last_received", counters.last_received)?;
        stats.set_item("last_sent", counters.last_sent)?;
        by_peer.set_item(peer, class.call((), Some(&stats))?)?;
    }
    let by_reason = PyDict::new(py);
    for (reason, count) in drops {
        by_reason.set_item(reason, count)?;
    }
    let workers: Vec<_> = workers
        .into_iter()
        .map(|(name, Reading { packets, bytes, batch_sizes, system_calls })| {
            make(py, STATISTICS, "WorkerStats", (name, packets, bytes, batch_sizes, system_calls))
        })
        .collect::<PyResult<_>>()?;
    make(py, STATISTICS, "PlaneStats", (by_peer, by_reason, notes, workers))
}
