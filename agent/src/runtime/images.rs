//! The runtime's images: what there is, what is used, and how one goes.

use std::collections::BTreeSet;

use beelet_core::images::Image;
use beelet_core::units::Bytes;
use beelet_proto::cri;

use super::client::Runtime;
use super::error::RuntimeError;

impl Runtime {
    /// All images.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let request = cri::ListImagesRequest::default();
        let answer = self.call("ListImages", self.timeout, self.images().list_images(request)).await?;
        let image = |image: cri::Image| Image {
            id: image.id,
            names: image.repo_tags.into_iter().chain(image.repo_digests).collect(),
            size: Bytes(image.size),
            pinned: image.pinned,
        };
        Ok(answer.images.into_iter().map(image).collect())
    }

    /// Ids and names of the images of all containers, running or dead, whoever made them, and of sandboxes.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn used_images(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let mut used = BTreeSet::from([self.sandbox_image()]);
        for container in self.list_containers(cri::ContainerFilter::default()).await? {
            // Runtimes differ in which of these is the id.
            used.extend([container.image_ref, container.image_id]);
            used.extend(container.image.into_iter().flat_map(|image| [image.image, image.user_specified_image]));
        }
        used.remove("");
        Ok(used)
    }

    /// Removes an image with all its names. One that is gone is no error.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn remove_image(&self, id: &str) -> Result<(), RuntimeError> {
        let image = Some(cri::ImageSpec { image: id.to_owned(), ..cri::ImageSpec::default() });
        let request = cri::RemoveImageRequest { image };
        match self.call("RemoveImage", self.timeout, self.images().remove_image(request)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DEFAULT_TIMEOUT;
    use super::super::fake::Fake;
    use super::*;

    #[tokio::test]
    async fn images_are_listed_with_their_names_and_go_by_id() {
        let fake = Fake::start();
        let runtime = Runtime::connect(&fake.endpoint(), DEFAULT_TIMEOUT, "i1").expect("a handle");
        let image = |id: &str, pinned| cri::Image {
            id: id.to_owned(),
            repo_tags: vec![format!("r/{id}:1")],
            repo_digests: vec![format!("r/{id}@sha256:1")],
            size: 4096,
            pinned,
            ..cri::Image::default()
        };
        fake.with(|world| {
            world.images = [("a", false), ("b", true)].map(|(id, pinned)| (id.to_owned(), image(id, pinned))).into();
            world.hangs.insert("b".to_owned());
        });
        let listed = runtime.list_images().await.expect("a list");
        let names = ["r/a:1", "r/a@sha256:1"].map(str::to_owned).into();
        assert_eq!(listed[0], Image { id: "a".to_owned(), names, size: Bytes(4096), pinned: false });
        assert!(listed[1].pinned);
        runtime.remove_image("a").await.expect("it goes");
        runtime.remove_image("a").await.expect("it is gone");
        assert!(runtime.remove_image("b").await.is_err());
        assert_eq!(runtime.list_images().await.expect("a list").len(), 1);
    }

    #[tokio::test]
    async fn a6_5b_whatever_a_container_calls_its_image_is_used() {
        let fake = Fake::start();
        let runtime = Runtime::connect(&fake.endpoint(), DEFAULT_TIMEOUT, "i1").expect("a handle");
        fake.with(|world| {
            let image = cri::ImageSpec {
                image: "sha256:1".to_owned(),
                user_specified_image: "busybox".to_owned(),
                ..cri::ImageSpec::default()
            };
            let mut dead = cri::ContainerStatus { id: "c".to_owned(), image: Some(image), ..Default::default() };
            dead.set_state(cri::ContainerState::ContainerExited);
            world.containers.insert("c".to_owned(), dead);
        });
        let used = runtime.used_images().await.expect("a list");
        assert_eq!(used.iter().map(String::as_str).collect::<Vec<_>>(), ["busybox", "sha256:1"]);
    }
}
