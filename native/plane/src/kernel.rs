//! What the running kernel does right, by its release.

/// Before this release, the kernel's UDP superpackets broke VXLAN and Geneve inside them.
const MERGES_UDP_FROM: [u32; 3] = [6, 8, 5];

/// Return whether the running kernel may be given UDP superpackets.
pub fn merges_udp() -> bool {
    // SAFETY: a utsname is plain bytes, and the kernel writes one.
    let name = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        if libc::uname(&raw mut name) != 0 {
            return false;
        }
        name
    };
    let release: String =
        name.release.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect();
    release_merges_udp(&release)
}

/// Return whether a kernel's release, such as `6.8.12-amd64`, is new enough.
fn release_merges_udp(release: &str) -> bool {
    let numbers = release.split('-').next().unwrap_or_default().split('.').take(3).map(str::parse);
    numbers.collect::<Result<Vec<u32>, _>>().is_ok_and(|numbers| numbers[..] >= MERGES_UDP_FROM[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_merged_where_the_kernel_does_it_right() {
        let releases = ["6.8.4", "6.8.5", "6.8", "6.9", "7.0.1-arch", "5.15.0-91-generic", "", "six"];
        let merged = releases.map(release_merges_udp);
        assert_eq!(merged, [false, true, false, true, true, false, false, false]);
    }
}
