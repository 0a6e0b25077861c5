//! Who may read and write what.

use super::*;

#[tokio::test]
async fn a_wrong_credential_is_refused_although_the_mirror_is_warm() {
    let world = World::new().await;
    world.git.prepare(&grant("a"), Some(&credential(TOKEN))).await.unwrap();
    for wrong in [Some(credential("wrong")), None] {
        let refused = world.git.prepare(&grant("b"), wrong.as_ref()).await.unwrap_err();
        assert!(matches!(refused, GitError::Authenticate { .. }), "{refused}");
        assert_eq!(refused.reason(), Some(Reason::ProviderUnavailable), "the token may be renewed");
        let (address, _server) = serve_gateway(world.git.clone(), grant("b"), wrong).await;
        let url = format!("http://{address}/git/main.git");
        let listed = client_async(world.directory.path(), &["ls-remote", &url]).await;
        assert!(stderr(&listed).contains("403"));
    }
    let mut other = credential(TOKEN);
    other.host = "example.com".to_owned();
    let requests = world.upstream.seen.requests.load(Ordering::SeqCst);
    let refused = world.git.prepare(&grant("b"), Some(&other)).await.unwrap_err();
    assert!(matches!(refused, GitError::MatchCredential { .. }), "{refused}");
    assert_eq!(world.upstream.seen.requests.load(Ordering::SeqCst), requests, "nothing is sent");
}

#[tokio::test]
async fn only_the_work_branch_takes_a_push_and_nothing_is_deleted() {
    let world = World::new().await;
    let sandbox = world.sandbox(&grant("a")).await;
    sandbox.change("feature").await;
    for target in ["main", "ai/xx", "ai/x/y", "other"] {
        let refused = stderr(&sandbox.push(target).await);
        assert!(refused.contains("rejected"), "{target}: {refused}");
    }
    let tag = client_async(&sandbox.tree, &["push", "origin", "HEAD:refs/tags/v1"]).await;
    assert!(stderr(&tag).contains("hidden ref"));
    for gone in [":ai/x", ":main"] {
        let refused = client_async(&sandbox.tree, &["push", "origin", gone]).await;
        assert!(!refused.status.success(), "{gone}");
    }
}

#[tokio::test]
async fn a_read_only_grant_fetches_and_cannot_push_or_publish() {
    let world = World::new().await;
    let mut reading = grant("a");
    reading.may_push = false;
    let sandbox = world.sandbox(&reading).await;
    let commit = sandbox.commit("feature", UID);
    assert!(stderr(&sandbox.push("ai/x").await).contains("403"));
    let refused = world.unpublished(&reading, &commit).await;
    assert!(matches!(refused, GitError::GrantPush), "{refused}");
}

#[tokio::test]
async fn the_credential_stands_in_no_argument_environment_or_file() {
    let world = World::new().await;
    let grant = grant("a");
    let commit = world.sandbox(&grant).await.change("feature").await;
    world.published(&grant, &commit).await;
    let seen = &world.upstream.seen;
    assert!(seen.inspected.load(Ordering::SeqCst) > 0, "no git process was looked at");
    assert_eq!(*seen.leaks.lock().unwrap(), Vec::<String>::new());
    let found = upstream::client(world.directory.path(), "grep", &["-rl", TOKEN, "git"]);
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[tokio::test]
async fn namespaces_share_no_mirror() {
    let world = World::new().await;
    let mut other = grant("b");
    other.namespace = "elsewhere".to_owned();
    let token = credential(TOKEN);
    let ours = grant("a");
    let (one, two) = tokio::join!(
        world.git.prepare(&ours, Some(&token)),
        world.git.prepare(&other, Some(&token))
    );
    assert_eq!(one.unwrap(), two.unwrap());
    let mirrors = std::fs::read_dir(world.directory.path().join("git/mirrors")).unwrap();
    assert_eq!(mirrors.count(), 2);
}

#[tokio::test]
async fn a_tenant_without_rights_gets_nothing_of_what_another_tenant_has_cached() {
    let world = World::new().await;
    let mine = grant("a");
    let private = world.sandbox(&mine).await.change("private").await;
    world.published(&mine, &private).await;
    let cached = world.upstream.seen.requests.load(Ordering::SeqCst);

    // The same URL without rights: the forge is asked, and its refusal is the gateway's.
    let mut theirs = grant("b");
    theirs.namespace = "tenant-b".to_owned();
    let own = Some(credential("token-of-tenant-b"));
    let refused = world.git.prepare(&theirs, own.as_ref()).await.unwrap_err();
    assert!(matches!(refused, GitError::Authenticate { .. }), "{refused}");
    assert!(world.upstream.seen.requests.load(Ordering::SeqCst) > cached, "the forge was asked");
    let (address, _server) = serve_gateway(world.git.clone(), theirs, own).await;
    let url = format!("http://{address}/git/main.git");
    for args in [vec!["ls-remote", &url], vec!["clone", "-q", &url, "stolen"]] {
        let refused = client_async(world.directory.path(), &args).await;
        assert!(stderr(&refused).contains("403"), "{args:?}");
    }

    // A repository of its own opens no way to the objects of the other mirror.
    let script = "git init -q --bare -b main o/own.git; git -C work push -q ../o/own.git main";
    run(&world.upstream.root, "sh", &["-ec", script]);
    let mut own = grant("c");
    own.namespace = "tenant-b".to_owned();
    own.repository.url = "https://github.com/o/own.git".to_owned();
    let sandbox = world.sandbox(&own).await;
    for version in ["protocol.version=0", "protocol.version=2"] {
        let asked = ["-c", version, "fetch", "-q", "origin", private.as_str()];
        let refused = client_async(&sandbox.tree, &asked).await;
        assert!(!refused.status.success(), "{version}");
        assert!(!client_async(&sandbox.tree, &["cat-file", "-e", &private]).await.status.success());
    }
}
