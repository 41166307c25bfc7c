# shellcheck shell=bash
# Builds the image of the Dockerfile without a container engine's daemon and without a registry: with buildah, on base
# images that are made here from Debian's packages under the names that the Dockerfile uses. Sourced after setup.sh.

image_store="$tools/image"
# For the tests: the folder with the image's file system, `root`, and what buildah says about it, `image.json`. Empty where there
# is no image.
export PREHEAT_IMAGE=

in_store() {
  buildah --root "$image_store/storage" --runroot "$image_store/run" --storage-driver "$(image_driver)" "$@"
}

# An overlay on an overlay is not possible: this may itself be a container.
image_driver() {
  if [ "$(stat --file-system --format %T "$image_store")" = overlayfs ]; then echo vfs; else echo overlay; fi
}

# base NAME PACKAGE[,PACKAGE]... [OPTION]...: an image of that name with these packages, configured with these options.
base() {
  local name=$1 packages=$2 root="$image_store/base" container
  shift 2
  ! in_store inspect --type image "$name" >/dev/null 2>&1 || return 0
  say "making a base image: $name"
  remove_base
  debootstrap --variant=minbase --include="$packages" bookworm "$root" >"$image_store/debootstrap.log" &&
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* &&
    container=$(in_store from scratch) &&
    tar --directory "$root" --create --file "$root.tar" . &&
    in_store add --quiet "$container" "$root.tar" / >/dev/null &&
    in_store config "$@" "$container" &&
    in_store commit --quiet --rm "$container" "$name" >/dev/null
  local status=$?
  remove_base
  return $status
}

# A debootstrap that was stopped leaves the system's /proc mounted in its folder.
remove_base() {
  ! mountpoint --quiet "$image_store/base/proc" || umount "$image_store/base/proc"
  rm -rf --one-file-system "$image_store/base" "$image_store/base.tar"
}

# Says why the image cannot be built here, and fails then.
setup_image() {
  [ "$(id -u)" -eq 0 ] || { echo 'buildah needs root for images made by debootstrap' && return 1; }
  { have buildah || apt_install buildah; } && { have debootstrap || apt_install debootstrap; } ||
    { echo 'buildah and debootstrap are not installed, and could not be' && return 1; }
  mkdir -p "$image_store"
  # The toolchain and the crates are this machine's, mounted; the image is built sooner than the one that is handed out.
  base docker.io/library/rust:1.95-bookworm gcc,libc6-dev,ca-certificates \
    --env PATH=/usr/local/toolchain/bin:/usr/sbin:/usr/bin:/sbin:/bin --env CARGO_HOME=/usr/local/cargo \
    --env CARGO_NET_OFFLINE=true --env CARGO_INCREMENTAL=0 --env CARGO_PROFILE_RELEASE_DEBUG=0 \
    --env CARGO_PROFILE_RELEASE_LTO=off --env CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    --env CARGO_PROFILE_RELEASE_OPT_LEVEL=0 >&2 &&
    base docker.io/library/debian:bookworm-slim base-files \
      --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin >&2 ||
    { echo 'the base images could not be made: Debian could not be reached' && return 1; }
}

# The steps that have not changed since the last time are kept, as layers, where that does not copy everything again.
build_image() {
  local container root layers=false
  [ "$(image_driver)" != overlay ] || layers=true
  in_store rm --all >/dev/null
  # Each change of the code leaves a layer of some hundred megabytes.
  [ "$(in_store images --quiet --filter dangling=true | wc -l)" -lt 8 ] || in_store rmi --prune --force >/dev/null
  in_store build --isolation chroot --layers=$layers --format docker --pull-never --tag preheat:test \
    --volume "$(rustc --print sysroot):/usr/local/toolchain:ro" \
    --volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry:ro" . &&
    in_store inspect --type image preheat:test >"$image_store/image.json" &&
    container=$(in_store from --pull-never preheat:test) && root=$(in_store mount "$container") &&
    ln --symbolic --force --no-dereference "$root" "$image_store/root" &&
    PREHEAT_IMAGE=$image_store
}

# Unmounts what the tests used.
drop_image() {
  [ -z "$PREHEAT_IMAGE" ] || in_store rm --all >/dev/null
}
