//! Pushes of a hostile sandbox, by a real git client and byte by byte.

use super::*;

#[tokio::test]
async fn a_commit_is_published_only_if_it_is_a_marked_change_on_top_of_the_start() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let publish = async |commit: &str| world.unpublished(&grant, commit).await;
    let start = run(&sandbox.tree, "git", &["rev-parse", "HEAD"]);
    assert_eq!(publish(&start).await.reason(), Some(Reason::NoChanges));

    let unpushed = sandbox.commit("feature", UID);
    assert!(matches!(publish(&unpushed).await, GitError::FindPushed { .. }));
    assert!(matches!(publish("--all").await, GitError::CheckCommitId { .. }));

    let unmarked = sandbox.commit("second", "another-task");
    assert!(sandbox.push("ai/x").await.status.success());
    assert!(matches!(publish(&unmarked).await, GitError::CheckTrailer { .. }));

    run(&sandbox.tree, "git", &["checkout", "-q", "--orphan", "elsewhere"]);
    let orphan = sandbox.commit("third", UID);
    let forced = client_async(&sandbox.tree, &["push", "-f", "origin", "HEAD:refs/heads/ai/x"]);
    assert!(forced.await.status.success());
    assert!(matches!(publish(&orphan).await, GitError::CheckDescent { .. }));
    assert_eq!(world.tip("ai/x"), None);
}

#[tokio::test]
async fn a_push_over_the_limits_is_refused() {
    let limits = GitLimits::with_push(64 * 1024, 10, 100);
    let world = World::with_limits(limits).await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    for number in 0..12 {
        std::fs::write(sandbox.tree.join(format!("f{number}")), format!("{number}")).unwrap();
    }
    let many = sandbox.change("more").await;
    let refused = world.unpublished(&grant, &many).await;
    assert!(matches!(refused, GitError::CheckSize { unit: "objects", .. }), "{refused}");

    // More than git sends in one piece, and more than the sockets between hold.
    let mut noise = vec![0; 16 * 1024 * 1024];
    getrandom::fill(&mut noise).unwrap();
    std::fs::write(sandbox.tree.join("binary"), noise).unwrap();
    sandbox.commit("large", UID);
    let pushed = sandbox.push("ai/x").await;
    let said = String::from_utf8_lossy(&pushed.stderr);
    assert!(!pushed.status.success());
    assert!(said.contains("pack exceeds maximum allowed size"), "{said}");
    assert!(!said.contains("RPC failed"), "a refusal is no fault of the network: {said}");
}

#[tokio::test]
async fn hooks_and_configuration_of_a_repository_do_not_run_in_the_gateway() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let mark = world.directory.path().join("ran");
    let script = format!("#!/bin/sh\ntouch {}\n", mark.display());
    // What a hostile tree can hold: hooks, attributes, modules; and, as if the quarantine itself had
    // been tampered with, hooks in it.
    let hooks = walk(&world.directory.path().join("git/quarantine")).join("hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    std::fs::create_dir_all(sandbox.tree.join("hooks")).unwrap();
    for name in [
        "pre-receive",
        "update",
        "post-receive",
        "post-update",
        "pre-push",
        "reference-transaction",
    ] {
        for directory in [&hooks, &sandbox.tree.join("hooks")] {
            let path = directory.join(name);
            std::fs::write(&path, &script).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&path, mode).unwrap();
        }
    }
    let filter = format!("* filter=x diff=x\n# {}\n", mark.display());
    std::fs::write(sandbox.tree.join(".gitattributes"), filter).unwrap();
    let commit = sandbox.change("feature").await;
    world.published(&grant, &commit).await;
    assert_eq!(world.tip("ai/x"), Some(commit));
    assert!(!mark.exists(), "a hook ran");
}

#[tokio::test]
async fn a_tree_with_dot_git_in_it_is_refused_on_push() {
    let world = World::new().await;
    let sandbox = world.sandbox(&grant("a")).await;
    let script = "blob=$(echo x | git hash-object -w --stdin)
        sub=$(printf '100755 blob %s\\tpre-commit\\n' $blob | git mktree)
        tree=$(printf '040000 tree %s\\t.GIT\\n' $sub | git mktree)
        git update-ref HEAD $(git commit-tree -p HEAD -m evil $tree)";
    run(&sandbox.tree, "sh", &["-ec", script]);
    let refused = stderr(&sandbox.push("ai/x").await);
    assert!(refused.contains("hasDotgit") || refused.contains("unpack"), "{refused}");
}

/// What the gateway says about publishing `commit`; nothing of it is upstream afterwards.
async fn refusal(world: &World, grant: &RepositoryGrant, commit: &str) -> GitError {
    let refused = world
        .git
        .publish(grant, &credential(TOKEN), commit, &Watchlist::of(&[secret()]), &permit())
        .await
        .unwrap_err();
    assert_eq!(world.tip("ai/x"), None);
    assert_eq!(refused.reason(), Some(Reason::PushRefused), "{refused}");
    assert!(refused.refused_push().is_some(), "{refused}");
    refused
}

const SECRET: &str = "canary/secret+value-0123456789";

fn secret() -> Credential {
    credential(SECRET)
}

/// Runs a shell script in the tree, commits what it staged, and pushes.
pub(super) async fn scripted(sandbox: &Sandbox, script: &str) -> String {
    let whole = format!(
        "{script}\ngit diff --cached --quiet ||\n  git commit -qm 'c\n\nAgent-Operator-Task-Uid: {UID}'"
    );
    run(&sandbox.tree, "sh", &["-ec", &whole]);
    let pushed = client_async(&sandbox.tree, &["push", "-qf", "origin", "HEAD:refs/heads/ai/x"]);
    let pushed = pushed.await;
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    run(&sandbox.tree, "git", &["rev-parse", "HEAD"])
}

/// Brings the tree back to where the step started.
fn reset(sandbox: &Sandbox) {
    run(&sandbox.tree, "sh", &["-ec", "git reset -q --hard origin/main; git clean -qfdx"]);
}

#[tokio::test]
async fn what_only_people_change_is_refused_added_changed_and_taken_away_again() {
    let world = World::new().await;
    let work = world.upstream.root.join("work");
    let set_up = "echo '* @people' > CODEOWNERS; git add .; git commit -qm owners
        git push -q ../o/r.git main";
    run(&work, "sh", &["-ec", set_up]);
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    for script in [
        "mkdir -p .github/workflows; echo x > .github/workflows/ci.yml; git add .",
        "mkdir -p .GitHub/Workflows; echo x > .GitHub/Workflows/ci.yml; git add .",
        "echo '* @evil' > CODEOWNERS; git add .",
        "git rm -q CODEOWNERS",
        "git mv CODEOWNERS elsewhere",
        "chmod +x CODEOWNERS; git add .",
        "printf '[submodule \"s\"]\\n\\tpath = s\\n\\turl = https://x/y\\n' > .gitmodules; git add .",
        // One commit brings it, the next one takes it away.
        "mkdir -p .github/workflows; echo x > .github/workflows/ci.yml; git add .; git commit -qm a
         git rm -q .github/workflows/ci.yml; echo y > other; git add .",
    ] {
        reset(&sandbox);
        let commit = scripted(&sandbox, script).await;
        let refused = refusal(&world, &grant, &commit).await;
        assert!(matches!(refused, GitError::ProtectPath { .. }), "{script}: {refused}");
        assert!(refused.to_string().contains("gateway.git.protectedPaths"), "{refused}");
    }
}

#[tokio::test]
async fn a_merge_of_an_old_commit_cannot_undo_what_only_people_change() {
    let world = World::new().await;
    let work = world.upstream.root.join("work");
    let set_up = "echo '* @nobody' > CODEOWNERS; git add .; git commit -qm one
        echo '* @people' > CODEOWNERS; git add .; git commit -qm two
        git push -q ../o/r.git main";
    run(&work, "sh", &["-ec", set_up]);
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    // The first parent is the old commit, so that no commit changes the file against its parent.
    let script = "start=$(git rev-parse HEAD); git checkout -q HEAD~1
        echo new > new; git add new; git commit -qm new
        git merge -q -s ours -m 'merge\n\nAgent-Operator-Task-Uid: UID' $start";
    let commit = scripted(&sandbox, &script.replace("UID", UID)).await;
    let refused = refusal(&world, &grant, &commit).await;
    assert!(matches!(refused, GitError::ProtectPath { .. }), "{refused}");
}

#[tokio::test]
async fn submodules_links_that_lead_out_and_names_that_hide_something_are_refused() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let ones = "1".repeat(40);
    let submodule = format!("git update-index --add --cacheinfo 160000,{ones},sub");
    for (script, what) in [
        (submodule.as_str(), "submodule"),
        ("ln -s /etc/passwd a; git add a", "symbolic link"),
        ("mkdir d; ln -s ../../x d/a; git add d", "symbolic link"),
        ("ln -s .git/config a; git add a", "symbolic link"),
        ("ln -s README a; git add a; git commit -qm a; ln -sf ../x a; git add a", "symbolic link"),
        ("ln -s $(printf 'x%.0s' $(seq 300))/../../.. a; git add a", "symbolic link"),
        ("touch \"$(printf 'a\\nb')\"; git add .", "control"),
        ("touch \"$(printf 'a\\342\\200\\256gpj.exe')\"; git add .", "control"),
        ("touch \"$(printf 'a\\377b')\"; git add .", "UTF-8"),
    ] {
        reset(&sandbox);
        let commit = scripted(&sandbox, script).await;
        let refused = refusal(&world, &grant, &commit).await;
        assert!(matches!(refused, GitError::CheckEntry { .. }), "{script}: {refused}");
        assert!(refused.to_string().contains(what), "{script}: {refused}");
    }
    reset(&sandbox);
    let good = "mkdir d; ln -s ../README d/a; ln -s d b; touch 'ä ö'; git add .";
    let commit = scripted(&sandbox, good).await;
    world.published(&grant, &commit).await;
    assert_eq!(world.tip("ai/x"), Some(commit));
}

#[tokio::test]
async fn commits_whose_texts_act_at_the_forge_or_hide_something_are_refused() {
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let change = "echo a > a; git add .";
    let long = "git commit -q --allow-empty -m \"$(printf 'x%.0s' $(seq 20000))\"";
    // git itself would make UTF-8 of it.
    let raw =
        "git update-ref HEAD $( (git cat-file commit $(git commit-tree -p HEAD -m x HEAD^{tree})
        printf 'a\\377b\\n') | git hash-object -t commit -w --stdin)";
    for (script, what) in [
        ("git commit -q --allow-empty -m 'Fixes #1'", "issue"),
        ("git commit -q --allow-empty -m 'x' -m 'Closes https://github.com/o/r/issues/1'", "issue"),
        ("git commit -q --allow-empty -m 'thanks to @octocat'", "mention"),
        ("git commit -q --allow-empty -m 'x [skip ci]'", "order"),
        ("git commit -q --allow-empty -m \"$(printf 'a\\033[2Jb')\"", "control"),
        ("git commit -q --allow-empty -m \"$(printf 'a\\342\\200\\256b')\"", "control"),
        (raw, "UTF-8"),
        ("git -c i18n.commitEncoding=utf-7 commit -q --allow-empty -m x", "encoding"),
        (
            "git commit -q --allow-empty -m x --author \"$(printf 'a\\342\\200\\256b <a@b>')\"",
            "headers",
        ),
        (
            "git commit -q --allow-empty -m x --author \"$(printf 'x%.0s' $(seq 600)) <a@b>\"",
            "author",
        ),
        ("git commit -q --allow-empty -m 'x\n\nAgent-Operator-Task-Uid: other'", "another task"),
        (long, "too long"),
    ] {
        reset(&sandbox);
        let commit = scripted(&sandbox, &format!("{script}\n{change}")).await;
        let refused = refusal(&world, &grant, &commit).await;
        assert!(matches!(refused, GitError::CheckMessage { .. }), "{script}: {refused}");
        assert!(refused.to_string().contains(what), "{script}: {refused}");
    }
}

#[tokio::test]
async fn what_people_have_said_upstream_may_be_merged_as_it_is() {
    let world = World::new().await;
    world.commit_upstream("theirs", "Fixes #1, thanks to @octocat");
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let fetched = client_async(&sandbox.tree, &["fetch", "-q", "origin", "theirs"]).await;
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    let script =
        format!("git merge -q --no-ff FETCH_HEAD -m 'merge\n\nAgent-Operator-Task-Uid: {UID}'");
    let commit = scripted(&sandbox, &script).await;
    world.published(&grant, &commit).await;
    assert_eq!(world.tip("ai/x"), Some(commit));
}

#[tokio::test]
async fn a_secret_of_the_task_anywhere_in_the_commits_refuses_the_push() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let encoded = STANDARD.encode(format!("x{SECRET}y"));
    let name = SECRET.replace('/', "%2F").replace('+', "%2B");
    let url = name.clone();
    for script in [
        format!("echo 'key: {SECRET}' > a; git add ."),
        format!("echo '{encoded}' > a; git add ."),
        format!("echo 'https://x/?q={url}' > a; git add ."),
        format!("(head -c 200000 /dev/zero; echo '{SECRET}') > a; git add ."),
        format!("touch '{name}'; git add ."),
        format!("git commit -q --allow-empty -m '{SECRET}'; echo a > a; git add ."),
        format!(
            "echo '{SECRET}' > a; git add .; git commit -qm a; git rm -q a; echo b > b; git add ."
        ),
    ] {
        reset(&sandbox);
        let commit = scripted(&sandbox, &script).await;
        let refused = refusal(&world, &grant, &commit).await;
        assert!(matches!(refused, GitError::FindSecret { .. }), "{script}: {refused}");
        assert!(!refused.to_string().contains("canary"), "{refused}");
    }
}

#[tokio::test]
async fn trees_and_files_that_unfold_to_more_than_they_are_packed_are_refused() {
    let world = World::with_limits(GitLimits::with_push(256 * 1024, 1000, 100)).await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    // Ten trees, each with ten times the one before: ten thousand million paths in a few objects.
    let bomb = format!(
        "object=$(echo x | git hash-object -w --stdin); mode='100644 blob'
         for depth in 0 1 2 3 4 5 6 7 8 9; do
           object=$(for n in 0 1 2 3 4 5 6 7 8 9; do printf '%s %s\\tf%s\\n' \"$mode\" $object $n; done | git mktree)
           mode='040000 tree'
         done
         git update-ref HEAD $(git commit-tree -p HEAD -m 'c\n\nAgent-Operator-Task-Uid: {UID}' $object)
         git read-tree HEAD~1"
    );
    let pushed = "git push -qf origin HEAD:refs/heads/ai/x; git rev-parse HEAD";
    let commit = tokio::task::spawn_blocking({
        let (tree, script) = (sandbox.tree.clone(), format!("{bomb}\n{pushed}"));
        move || run(&tree, "sh", &["-ec", &script])
    });
    let refused = refusal(&world, &grant, &commit.await.unwrap()).await;
    assert!(matches!(refused, GitError::CheckSize { unit: "changed files", .. }), "{refused}");

    reset(&sandbox);
    let commit = scripted(&sandbox, "head -c 8000000 /dev/zero > zeros; git add .").await;
    let refused = refusal(&world, &grant, &commit).await;
    assert!(matches!(refused, GitError::CheckSize { unit: "bytes unpacked", .. }), "{refused}");

    reset(&sandbox);
    let commit = scripted(&sandbox, "for n in $(seq 101); do echo a > f$n; done; git add .").await;
    let refused = refusal(&world, &grant, &commit).await;
    assert!(matches!(refused, GitError::CheckSize { unit: "changed files", .. }), "{refused}");
}

#[tokio::test]
async fn one_attempt_cannot_fill_the_disk_with_push_after_push() {
    let limits = GitLimits::with_push(64 * 1024, 1000, 100);
    let world = World::with_limits(limits).await;
    let sandbox = world.sandbox(&grant("a")).await;
    let mut taken = 0;
    let refused = loop {
        let mut noise = vec![0; 48 * 1024];
        getrandom::fill(&mut noise).unwrap();
        std::fs::write(sandbox.tree.join("noise"), noise).unwrap();
        run(&sandbox.tree, "sh", &["-ec", "git add .; git commit -q --amend -m x"]);
        let pushed =
            client_async(&sandbox.tree, &["push", "-qf", "origin", "HEAD:refs/heads/ai/x"]).await;
        if !pushed.status.success() {
            break stderr(&pushed);
        }
        taken += 1;
        assert!(taken < 20, "nothing stops it");
    };
    assert!(refused.contains("403"), "{refused}");
    assert!((4..6).contains(&taken), "{taken} pushes of 48 KiB into 192 KiB");
}

#[tokio::test]
async fn a_push_that_takes_more_memory_than_git_has_is_the_steps_failure_and_is_not_tried_again() {
    let mut world = World::new().await;
    let grant = grant("a");
    let sandbox = world.sandbox(&grant).await;
    let script = format!(
        "echo a > a; git add .
         (head -c 40000000 /dev/zero | tr '\\0' x; printf '\n\nAgent-Operator-Task-Uid: {UID}\n') > .git/m
         git update-ref HEAD $(git commit-tree -p HEAD -F .git/m $(git write-tree))"
    );
    let commit = scripted(&sandbox, &script).await;
    // The push itself was within the usual heap; the look at it is not within this one.
    let limits = GitLimits { heap_kib_max: 32 * 1024, ..GitLimits::default() };
    world.git = service(world.directory.path(), &world.upstream, limits);
    let refused = refusal(&world, &grant, &commit).await;
    assert!(matches!(refused, GitError::ExhaustMemory { .. }), "{refused}");
    assert!(!refused.retryable(), "{refused}");
    world.git = world.new_service();
    let refused = refusal(&world, &grant, &commit).await;
    assert!(matches!(refused, GitError::CheckMessage { .. }), "{refused}");

    // A pack that git cannot even unpack is refused at the push, in words that are no fault of the network.
    world.git.discard(&grant.run).await;
    world.git = service(world.directory.path(), &world.upstream, limits);
    let mut again = self::grant("b");
    again.run.attempt = Attempt(2);
    world.git.prepare(&again, Some(&credential(TOKEN))).await.unwrap();
    let (address, _server) =
        serve_gateway(world.git.clone(), again.clone(), Some(credential(TOKEN))).await;
    let url = format!("http://{address}/git/main.git");
    let pushed = client_async(&sandbox.tree, &["push", "-q", &url, "HEAD:refs/heads/ai/x"]).await;
    let said = stderr(&pushed);
    assert!(said.contains("remote rejected") || said.contains("unpack"), "{said}");
    assert!(!said.contains("RPC failed") && !said.contains("early EOF"), "{said}");
}

/// Sends one push command byte by byte; the client would refuse to.
async fn raw_push(sandbox: &Sandbox, name: &str, id: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let zero = "0".repeat(40);
    let command = format!("{zero} {id} {name}\0 report-status\n");
    let mut body = format!("{:04x}{command}0000", command.len() + 4).into_bytes();
    // A pack without objects, and its checksum.
    body.extend_from_slice(b"PACK\0\0\0\x02\0\0\0\0");
    body.extend((0..20).map(|at| {
        u8::from_str_radix(&"029d08823bd8a8eab510ad6ac75c823cfd3ed31e"[2 * at..2 * at + 2], 16)
            .unwrap()
    }));
    let address = sandbox.url.trim_start_matches("http://").split('/').next().unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /git/main.git/git-receive-pack HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\
         content-type: application/x-git-receive-pack-request\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn odd_names_of_refs_change_nothing() {
    let world = World::new().await;
    let sandbox = world.sandbox(&grant("a")).await;
    let quarantine = walk(&world.directory.path().join("git/quarantine"));
    let refs = || run(&quarantine, "git", &["for-each-ref"]);
    let files = || {
        run(
            &quarantine,
            "sh",
            &["-ec", "find . -type f -not -path './objects/*' | sort; cat config"],
        )
    };
    let before = (refs(), files());
    let id = run(&sandbox.tree, "git", &["rev-parse", "HEAD"]);
    let long = format!("refs/heads/{}", "x".repeat(10_000));
    let replace = format!("refs/replace/{id}");
    for name in [
        "HEAD",
        "config",
        "refs/heads/main",
        "refs/heads/../../config",
        "refs/heads/ai/x/../../main",
        "refs/heads/ai/x.lock",
        "refs/heads/ai/x/y",
        "refs/heads/ai",
        "refs/heads/-x",
        "refs/heads/a b",
        "refs/tags/v1",
        "refs/for/main",
        "../outside",
        "",
        &replace,
        &long,
    ] {
        let answer = raw_push(&sandbox, name, &id).await;
        assert!(!answer.contains("\nok ") && !answer.contains("ok refs/"), "{name}: {answer}");
        assert_eq!((refs(), files()), before, "{name}");
    }
    let answer = raw_push(&sandbox, "refs/heads/ai/x", &id).await;
    assert!(
        answer.contains("ng refs/heads/ai/x") || answer.contains("ok refs/heads/ai/x"),
        "{answer}"
    );
}
