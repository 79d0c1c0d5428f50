//! SQL that makes a server write records of many kinds.

use neon_testkit::{Cluster, PgMajor};

/// Indexes of every access method, TOAST, sequences, vacuum, truncation, DDL that is rolled back,
/// savepoints, row locks by several transactions.
pub(crate) fn run(cluster: &Cluster) {
    cluster.psql(
        "create table heap (id int primary key, a int, t text, p point, r int4range, x tsvector);
         create index on heap using hash (a);
         create index on heap using gin (x);
         create index on heap using gist (p);
         create index on heap using spgist (r);
         create index on heap using brin (id);
         insert into heap select i, i % 100, repeat(md5(i::text), 3), point(i, -i),
                int4range(i, i + 10), to_tsvector('simple', 'word' || i || ' common')
           from generate_series(1, 3000) i;
         vacuum (freeze) heap;
         update heap set a = a + 1 where id % 7 = 0;
         delete from heap where id % 5 = 0;
         insert into heap select i, 1, 'again', point(0, 0), int4range(1, 2), 'a'::tsvector
           from generate_series(3001, 3100) i on conflict do nothing;
         select count(*) from (select * from heap where id < 50 for update) locked;
         vacuum heap;
         delete from heap where id > 1000;
         vacuum (truncate) heap;
         create sequence s;
         select nextval('s') from generate_series(1, 100);
         create table big (t text);
         alter table big alter t set storage external;
         insert into big select repeat('x', 100000 + i) from generate_series(1, 5) i;
         create unlogged table loud (i int);
         insert into loud select generate_series(1, 100);
         create materialized view mv as select * from heap;
         refresh materialized view mv;
         cluster heap using heap_pkey;
         truncate big;
         create table part (i int) partition by range (i);
         create table part_1 partition of part for values from (0) to (10);
         drop table part;
         reindex table heap;",
    );
    cluster.psql(
        "begin; create table gone (i int); insert into gone select generate_series(1, 1000); rollback;
         begin; insert into heap(id) values (100001); savepoint a; insert into heap(id) values (100002);
         savepoint b; insert into heap(id) values (100003); rollback to a; commit;",
    );
    // Commits whose lists do not fit into a page.
    cluster.psql(
        "do $$ begin for i in 1..2500 loop
           begin insert into heap(id) values (200000 + i); exception when others then null; end;
         end loop; end $$;
         do $$ begin for i in 1..300 loop execute 'create table many_' || i || ' (t text)'; end loop; end $$;
         do $$ begin for i in 1..300 loop execute 'drop table many_' || i; end loop; end $$;",
    );
    // Two transactions lock one row: a multixact.
    let mut one = cluster.session("postgres");
    one.run("begin; select id from heap where id = 1 for share");
    cluster.psql("begin; select id from heap where id = 1 for share; commit");
    one.run("commit");
    cluster.psql("begin; update heap set a = 5 where id = 2; prepare transaction 'one'");
    cluster.psql(
        "begin; create table two (i int); drop materialized view mv; prepare transaction 'two'",
    );
    cluster.psql("commit prepared 'one'; rollback prepared 'two'");
    cluster.psql("create database other; drop database other");
    if cluster.major() >= PgMajor::V15 {
        cluster.psql("create database copied strategy file_copy; drop database copied");
    }
    let folder = cluster.tablespace_dir("ts");
    cluster.psql(&format!(
        "create tablespace ts location '{}';
         create table elsewhere (i int) tablespace ts; insert into elsewhere values (1);
         drop table elsewhere; drop tablespace ts;",
        folder.display()
    ));
    cluster.psql(
        "select pg_create_restore_point('here');
         select pg_logical_emit_message(true, 'prefix', repeat('m', 3000000));
         select pg_logical_emit_message(false, 'prefix', 'short');
         vacuum full pg_class;
         checkpoint;
         select pg_switch_wal();
         insert into heap(id) values (100004);",
    );
}
