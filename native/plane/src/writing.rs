//! Refusing to write anywhere but in some places (landlock(7)), for this thread and all that it
//! starts.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use landlock::{
    ABI, AccessFs, BitFlags, LandlockStatus, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};

/// The newest version whose rights are handled: an older kernel leaves out those it doesn't know.
const NEWEST: ABI = ABI::V6;
/// linux/landlock.h
const CREATE_RULESET_VERSION: libc::c_uint = 1;

/// Where writing is permitted. Each place is open (O_PATH suffices). The caller keeps it open: the
/// inodes of some filesystems, /proc among them, are others once nobody uses them.
pub struct Places<'fd> {
    /// Directories: files in them may be made, written, renamed and removed.
    pub directories: Vec<BorrowedFd<'fd>>,
    /// Files that may be written, or directories whose files may be.
    pub files: Vec<BorrowedFd<'fd>>,
    /// Devices that may be written and set up.
    pub devices: Vec<BorrowedFd<'fd>>,
}

/// Return the version of Landlock in this kernel, or 0 if it has none or didn't switch it on.
pub fn version() -> i32 {
    // SAFETY: with this flag the kernel reads and writes no memory of ours.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0_usize, CREATE_RULESET_VERSION)
    };
    i32::try_from(version).unwrap_or(0).max(0)
}

/// Refuse to write elsewhere from now on, for good, and to signal processes that were there before.
///
/// Return the version of Landlock that was used, 0 if there is none. The caller has set
/// `no_new_privs`, or has CAP_SYS_ADMIN.
///
/// # Errors
/// The kernel refuses.
pub fn restrict(places: &Places<'_>) -> io::Result<i32> {
    let status = restrict_as(places, NEWEST).map_err(io::Error::other)?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => 0,
        (_, LandlockStatus::Available { effective_abi, .. }) => effective_abi.min(NEWEST) as i32,
        (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => 0,
    })
}

fn restrict_as(places: &Places<'_>, newest: ABI) -> Result<RestrictionStatus, RulesetError> {
    let known = AccessFs::from_write(newest);
    let file = make_bitflags!(AccessFs::{WriteFile | Truncate}) & known;
    let directory = file | make_bitflags!(AccessFs::{MakeReg | RemoveFile});
    let device = make_bitflags!(AccessFs::{WriteFile | IoctlDev}) & known;
    let mut ruleset = Ruleset::default().handle_access(known)?;
    if newest >= ABI::V6 {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    ruleset
        .create()?
        .add_rules(rules(&places.directories, directory))?
        .add_rules(rules(&places.files, file))?
        .add_rules(rules(&places.devices, device))?
        .restrict_self()
}

fn rules<'fd>(
    places: &[BorrowedFd<'fd>],
    access: BitFlags<AccessFs>,
) -> impl Iterator<Item = Result<PathBeneath<BorrowedFd<'fd>>, RulesetError>> {
    places.iter().map(move |&place| Ok(PathBeneath::new(place, access)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::ErrorKind::PermissionDenied;
    use std::os::fd::AsFd;
    use std::path::PathBuf;

    fn fresh_directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("landlock-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("ours")).unwrap();
        fs::write(path.join("theirs"), "x").unwrap();
        path
    }

    /// With the rights of each version, in a thread of its own: the restriction is the thread's.
    #[test]
    fn files_of_a_permitted_directory_can_be_replaced_and_no_others() {
        if version() == 0 {
            eprintln!("this kernel has no Landlock: nothing was tested");
            return;
        }
        for newest in [ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5, ABI::V6] {
            let root = fresh_directory(&newest.to_string());
            let inside = root.clone();
            std::thread::spawn(move || {
                let ours = inside.join("ours");
                let open = File::open(&ours).unwrap();
                let places = Places { directories: vec![open.as_fd()], files: Vec::new(), devices: Vec::new() };
                restrict_as(&places, newest).unwrap();
                fs::write(ours.join("new"), "1").unwrap();
                fs::rename(ours.join("new"), ours.join("file")).unwrap();
                fs::hard_link(ours.join("file"), ours.join("second")).unwrap();
                fs::remove_file(ours.join("second")).unwrap();
                fs::write(ours.join("file"), "2").unwrap();
                assert_eq!(fs::read_to_string(inside.join("theirs")).unwrap(), "x");
                let refused = [
                    fs::write(inside.join("theirs"), "y"),
                    fs::write(inside.join("made"), "y"),
                    fs::remove_file(inside.join("theirs")),
                    fs::create_dir(ours.join("directory")),
                    std::os::unix::fs::symlink("x", ours.join("link")),
                ];
                for each in refused {
                    assert_eq!(each.unwrap_err().kind(), PermissionDenied, "{newest:?}");
                }
                assert!(fs::rename(ours.join("file"), inside.join("theirs")).is_err());
            })
            .join()
            .unwrap();
            assert_eq!(fs::read_to_string(root.join("theirs")).unwrap(), "x");
            fs::remove_dir_all(root).unwrap();
        }
    }
}
